// Classify photographs with an exported network, without Python, nearly as `python -m fashion_cnn.predict` does.
//
//   npm install onnxruntime-web pngjs jpeg-js
//   node classify.js network.onnx metadata.json shirt.jpg
//
// metadata.json is the output of `python classify.py network.onnx --metadata`: onnxruntime-web does not read the metadata of
// an ONNX file. Items are prepared like those of Fashion-MNIST (fashion_cnn/pictures/preparation.py), to 3 of 255 levels for a
// PNG; decoders of JPEG differ by more at edges. Unlike there, an orientation in EXIF is ignored, the background behind
// transparent pixels is white for light items too, and invert is always auto. Networks that were trained on items that are
// not cut out, or on colour images, need another preparation, and are refused. The network of a catalogue of
// embedding=pretrained takes photographs as they are: its file resizes them. Items on a plain background are not trimmed
// here, as they are there.
"use strict";

const fs = require("fs");
const ort = require("onnxruntime-web");
const { PNG } = require("pngjs");
const jpeg = require("jpeg-js");

// A plane is one channel: {width, height, data}, with whole values from 0 to 255.
const plane = (width, height, value = 0) => ({ width, height, data: new Float64Array(width * height).fill(value) });
const median = (values) => {
  const sorted = Float64Array.from(values).sort();
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};

/** Red, green and blue planes of a PNG or JPEG file, transparent pixels on white. */
function decode(file) {
  const content = fs.readFileSync(file);
  const isPng = content.readUInt32BE(0) === 0x89504e47;
  const { width, height, data } = isPng ? PNG.sync.read(content) : jpeg.decode(content, { formatAsRGBA: true });
  return [0, 1, 2].map((channel) => {
    const result = plane(width, height);
    for (let i = 0; i < width * height; i++) {
      const alpha = data[4 * i + 3] / 255;
      result.data[i] = Math.round(data[4 * i + channel] * alpha + 255 * (1 - alpha));
    }
    return result;
  });
}

/** Grey values, as Pillow weights the channels. */
function grey([red, green, blue]) {
  const result = plane(red.width, red.height);
  for (let i = 0; i < result.data.length; i++) {
    result.data[i] = (red.data[i] * 19595 + green.data[i] * 38470 + blue.data[i] * 7471 + 0x8000) >> 16;
  }
  return result;
}

/** Mean of blocks of factor x factor pixels; those at the right and at the bottom may be smaller. */
function reduce(source, factor) {
  const result = plane(Math.ceil(source.width / factor), Math.ceil(source.height / factor));
  for (let y = 0; y < result.height; y++) {
    for (let x = 0; x < result.width; x++) {
      let sum = 0;
      let count = 0;
      for (let v = y * factor; v < Math.min((y + 1) * factor, source.height); v++) {
        for (let u = x * factor; u < Math.min((x + 1) * factor, source.width); u++, count++) {
          sum += source.data[v * source.width + u];
        }
      }
      result.data[y * result.width + x] = Math.floor(sum / count + 0.5);
    }
  }
  return result;
}

function crop(source, left, top, right, bottom) {
  const result = plane(right - left, bottom - top);
  for (let y = top; y < bottom; y++) {
    const row = source.data.subarray(y * source.width + left, y * source.width + right);
    result.data.set(row, (y - top) * result.width);
  }
  return result;
}

const transpose = (source) => {
  const result = plane(source.height, source.width);
  for (let y = 0; y < source.height; y++) {
    for (let x = 0; x < source.width; x++) result.data[x * result.width + y] = source.data[y * source.width + x];
  }
  return result;
};

const box = (x) => (x > -0.5 && x <= 0.5 ? 1 : 0);
const bicubic = (x) => {
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
};

/** Resize the width as Pillow does: the filter is as wide as the pixels of the result. */
function resizeWidth(source, width, filter, support) {
  const result = plane(width, source.height);
  const scale = source.width / width;
  const stretch = Math.max(1, scale);
  for (let x = 0; x < width; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - support * stretch + 0.5));
    const end = Math.min(source.width, Math.floor(centre + support * stretch + 0.5));
    const weights = [];
    for (let u = first; u < end; u++) weights.push(filter((u - centre + 0.5) / stretch));
    const total = weights.reduce((a, b) => a + b, 0);
    for (let y = 0; y < source.height; y++) {
      let sum = 0;
      weights.forEach((weight, i) => (sum += weight * source.data[y * source.width + first + i]));
      result.data[y * width + x] = Math.min(255, Math.max(0, Math.floor(sum / total + 0.5)));
    }
  }
  return result;
}

const resize = (source, width, height, filter, support) =>
  transpose(resizeWidth(transpose(resizeWidth(source, width, filter, support)), height, filter, support));

/** Unsharp mask of radius 1, whose blur is three passes of a narrow box in each direction. */
function sharpen(source, percent) {
  const blurWidth = (image) => {
    const result = plane(image.width, image.height);
    for (let y = 0; y < image.height; y++) {
      const at = (x) => image.data[y * image.width + Math.min(image.width - 1, Math.max(0, x))];
      for (let x = 0; x < image.width; x++) {
        result.data[y * image.width + x] = Math.floor(at(x) * (2 / 3) + (at(x - 1) + at(x + 1)) / 6 + 0.5);
      }
    }
    return result;
  };
  let blurred = source;
  for (let pass = 0; pass < 3; pass++) blurred = blurWidth(blurred);
  blurred = transpose(blurred);
  for (let pass = 0; pass < 3; pass++) blurred = blurWidth(blurred);
  blurred = transpose(blurred);
  const result = plane(source.width, source.height);
  source.data.forEach((value, i) => {
    const change = Math.trunc(((value - blurred.data[i]) * percent) / 100);
    result.data[i] = Math.min(255, Math.max(0, value + change));
  });
  return result;
}

function border({ width, height, data }) {
  const values = [];
  for (let x = 0; x < width; x++) values.push(data[x], data[(height - 1) * width + x]);
  for (let y = 0; y < height; y++) values.push(data[y * width], data[y * width + width - 1]);
  return values;
}

/** Median colour of the four corners. */
function findBackground(channels) {
  const { width, height } = channels[0];
  const side = Math.max(1, Math.floor(Math.min(width, height) / 28));
  return channels.map((channel) => {
    const corners = [0, width - side].flatMap((left) =>
      [0, height - side].flatMap((top) => [...crop(channel, left, top, left + side, top + side).data]),
    );
    return Math.round(median(corners));
  });
}

/** Prepare a photograph: the item as its difference to a plain background, trimmed, in a square of `size` pixels. */
function prepare(channels, size, { tolerance, sharpening }) {
  if (channels[0].width === size && channels[0].height === size) {
    const image = grey(channels);
    const edge = border(image);
    const isNegative = edge.filter((v) => v > 127).length >= 0.75 * edge.length;
    return Uint8Array.from(image.data, (v) => (isNegative ? 255 - v : v));
  }
  const pixels = channels[0].width * channels[0].height;
  const factor = Math.max(1, Math.floor(Math.sqrt(Math.floor(pixels / (256 * size * size)))));
  channels = channels.map((channel) => reduce(channel, factor));
  const limit = Math.round(tolerance * 255);
  const { width, height } = channels[0];
  const step = Math.max(1, Math.floor(Math.min(width, height) / (8 * size)));
  const small = channels.map((channel) => reduce(channel, step));
  const background = findBackground(small);
  const mask = plane(small[0].width, small[0].height);
  small.forEach(({ data }, c) => data.forEach((v, i) => (mask.data[i] ||= Math.abs(v - background[c]) > limit ? 1 : 0)));
  const edge = border(mask);
  const isPlain = edge.reduce((a, b) => a + b, 0) / edge.length <= 0.5;
  let item = grey(channels);
  if (isPlain) {
    const columns = [];
    const rows = [];
    mask.data.forEach((v, i) => v && (columns.push(i % mask.width), rows.push(Math.floor(i / mask.width))));
    if (columns.length) {
      const low = (values) => values.reduce((a, b) => Math.min(a, b)) * step;
      const high = (values, side) => Math.min(side, (values.reduce((a, b) => Math.max(a, b)) + 1) * step);
      item = crop(item, low(columns), low(rows), high(columns, width), high(rows, height));
    }
    const backgroundGrey = grey(background.map((value) => plane(1, 1, value))).data[0];
    item.data.forEach((v, i) => (item.data[i] = Math.abs(v - backgroundGrey)));
  } else if (median(border(item)) > 127) {
    item.data.forEach((v, i) => (item.data[i] = 255 - v));
  }
  const scale = size / Math.max(item.width, item.height);
  const [newWidth, newHeight] = [item.width, item.height].map((side) => Math.max(1, Math.round(side * scale)));
  const resized = scale < 1 ? resize(item, newWidth, newHeight, box, 0.5) : resize(item, newWidth, newHeight, bicubic, 2);
  let framed = plane(size, size);
  const [left, top] = [(size - newWidth + 1) >> 1, (size - newHeight + 1) >> 1];
  for (let y = 0; y < newHeight; y++) {
    framed.data.set(resized.data.subarray(y * newWidth, (y + 1) * newWidth), (y + top) * size + left);
  }
  if (Math.max(item.width, item.height) > size) framed = sharpen(framed, sharpening);
  const brightest = framed.data.reduce((a, b) => Math.max(a, b));
  return Uint8Array.from(framed.data, (v) => (brightest <= limit ? v : Math.round((v * 255) / brightest)));
}

/** Classify a photograph by the network of a run. */
async function classify(session, preparation, file) {
  const [channels, height, width] = preparation.image_shape;
  if (!preparation.cut_out || preparation.photograph || channels !== 1 || height !== width) {
    throw new Error("This example prepares grey images of cut out items only; classify.py prepares all.");
  }
  const pixels = prepare(decode(file), height, preparation);
  const output = await session.run({ images: new ort.Tensor("uint8", pixels, [1, 1, height, width]) });
  return [...output.probabilities.data];
}

/** Classify a photograph by the network of a catalogue, whose graph resizes and normalises it. */
async function classifyPhotograph(session, file) {
  const channels = decode(file);
  const { width, height } = channels[0];
  const pixels = new Uint8Array(3 * width * height);
  channels.forEach(({ data }, c) => data.forEach((value, i) => (pixels[3 * i + c] = value)));
  const output = await session.run({ photographs: new ort.Tensor("uint8", pixels, [1, height, width, 3]) });
  const logits = [...output.logits.data];
  const highest = logits.reduce((a, b) => Math.max(a, b));
  const odds = logits.map((value) => Math.exp(value - highest));
  const total = odds.reduce((a, b) => a + b);
  return odds.map((value) => value / total);
}

async function main([networkFile, metadataFile, ...files]) {
  const { preparation, settings, class_names: names } = JSON.parse(fs.readFileSync(metadataFile, "utf8"));
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(fs.readFileSync(networkFile));
  for (const file of files) {
    const probabilities = await (settings ? classifyPhotograph(session, file) : classify(session, preparation, file));
    const best = probabilities.map((value, label) => [names[label], value]).sort((a, b) => b[1] - a[1]);
    console.log(JSON.stringify({ file, classes: best.slice(0, 3) }));
  }
}

module.exports = { decode, prepare };
if (require.main === module) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(error.message);
    process.exit(1);
  });
}

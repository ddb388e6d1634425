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
// embedding=pretrained takes photographs as they are: its file resizes them, and items on a plain background are trimmed
// here first (fashion_cnn/pictures/colour.py).
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

/** Mean of blocks of `across` x `down` pixels; those at the right and at the bottom may be smaller. */
function reduce(source, across, down = across) {
  const result = plane(Math.ceil(source.width / across), Math.ceil(source.height / down));
  for (let y = 0; y < result.height; y++) {
    for (let x = 0; x < result.width; x++) {
      let sum = 0;
      let count = 0;
      for (let v = y * down; v < Math.min((y + 1) * down, source.height); v++) {
        for (let u = x * across; u < Math.min((x + 1) * across, source.width); u++, count++) {
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

/** Put a plane into another, at these pixels. */
function paste(target, source, left, top) {
  for (let y = 0; y < source.height; y++) {
    const row = source.data.subarray(y * source.width, (y + 1) * source.width);
    target.data.set(row, (y + top) * target.width + left);
  }
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

/** Resize the first `length` columns as Pillow does: the filter is as wide as the pixels of the result. */
function resizeWidth(source, width, filter, support, length = source.width) {
  const result = plane(width, source.height);
  const scale = length / width;
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
  paste(framed, resized, left, top);
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

/** Round halves to even numbers, as Python does. */
const roundHalfEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/** A copy whose longer side has 112 pixels, as Pillow's thumbnail with a reducing gap of 2; smaller pictures as they are. */
function thumbnail(channels, side = 112) {
  const { width, height } = channels[0];
  if (Math.max(width, height) <= side) return channels;
  const aspect = width / height;
  const nearest = (value, distance) =>
    Math.max(1, distance(Math.floor(value)) <= distance(Math.ceil(value)) ? Math.floor(value) : Math.ceil(value));
  const newWidth = aspect <= 1 ? nearest(side * aspect, (n) => Math.abs(aspect - n / side)) : side;
  const newHeight = aspect <= 1 ? side : nearest(side / aspect, (n) => (n ? Math.abs(aspect - side / n) : 0));
  const [across, down] = [width / newWidth, height / newHeight].map((ratio) => Math.max(1, Math.floor(ratio / 2)));
  return channels.map((channel) => {
    const narrow = resizeWidth(reduce(channel, across, down), newWidth, bicubic, 2, width / across);
    return transpose(resizeWidth(transpose(narrow), newHeight, bicubic, 2, height / down));
  });
}

/** CIELAB planes of red, green and blue planes, white point D65. */
function toLab(channels) {
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const root = (t) => (t > (6 / 29) ** 3 ? Math.cbrt(t) : (t * (29 / 6) ** 2) / 3 + 4 / 29);
  const [red, green, blue] = channels.map(({ data }) => data.map(linear));
  const xyz = [
    [0.433953, 0.376219, 0.189828],
    [0.212673, 0.715152, 0.072175],
    [0.017758, 0.109477, 0.872765],
  ].map(([r, g, b]) => red.map((value, i) => root(r * value + g * green[i] + b * blue[i])));
  return [
    xyz[1].map((y) => 116 * y - 16),
    xyz[0].map((x, i) => 500 * (x - xyz[1][i])),
    xyz[1].map((y, i) => 200 * (y - xyz[2][i])),
  ];
}

/** Solve a 3x3 system by Cramer's rule. */
function solve(m, b) {
  const det = ([[a, c, d], [e, f, g], [h, i, j]]) => a * (f * j - g * i) - c * (e * j - g * h) + d * (e * i - f * h);
  const whole = det(m);
  return [0, 1, 2].map((k) => det(m.map((row, r) => row.map((value, c) => (c === k ? b[r] : value)))) / whole);
}

/** Mask of the item on a plain or evenly shaded background; null if the border is not plain or nothing differs from it. */
function foreground(lab, width, height) {
  const places = [];
  const border = [];
  const edge = Math.max(1, Math.floor(Math.min(width, height) / 50));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (x < edge || y < edge || x >= width - edge || y >= height - edge) border.push(places.length);
      places.push([1, height > 1 ? (2 * y) / (height - 1) - 1 : -1, width > 1 ? (2 * x) / (width - 1) - 1 : -1]);
    }
  }
  // The background is linear in the position: least absolute deviations, by iteratively reweighted least squares.
  let fit = lab.map((values) => [median(border.map((i) => values[i])), 0, 0]);
  const fitted = (c, i) => fit[c].reduce((sum, value, k) => sum + value * places[i][k], 0);
  const distance = (i) => Math.hypot(...lab.map((values, c) => values[i] - fitted(c, i)));
  for (let round = 0; round < 8; round++) {
    const weights = border.map((i) => 1 / Math.max(distance(i), 1));
    const sum = (term) => border.reduce((total, i, n) => total + weights[n] * term(i), 0);
    const axes = [0, 1, 2];
    const moments = axes.map((j) => axes.map((k) => sum((i) => places[i][j] * places[i][k]) + (j === k ? 1e-3 : 0)));
    fit = lab.map((values) => solve(moments, axes.map((k) => sum((i) => places[i][k] * values[i]))));
  }
  const distances = places.map((_, i) => distance(i));
  const limit = Math.min(18, Math.max(9, 4 * median(border.map((i) => distances[i]))));
  if (border.filter((i) => distances[i] <= limit).length < 0.7 * border.length) return null;
  const at = (x, y) => distances[Math.min(height - 1, Math.max(0, y)) * width + Math.min(width - 1, Math.max(0, x))];
  const near = [-1, 0, 1].flatMap((down) => [-1, 0, 1].map((right) => [right, down]));
  const mask = places.map((_, i) => {
    const [x, y] = [i % width, Math.floor(i / width)];
    return near.filter(([right, down]) => at(x + right, y + down) > limit).length > 4;
  });
  return mask.filter(Boolean).length >= 0.003 * mask.length ? mask : null;
}

/** The item on a plain background with a margin, in a square of `size` pixels; any other photograph as it is. */
function trim(channels, size) {
  const { width, height } = channels[0];
  const small = thumbnail(channels);
  const [smallWidth, smallHeight] = [small[0].width, small[0].height];
  const mask = foreground(toLab(small), smallWidth, smallHeight);
  if (!mask) return channels;
  const found = [...mask.keys()].filter((i) => mask[i]);
  const spans = [
    [found.map((i) => i % smallWidth), width / smallWidth, width],
    [found.map((i) => Math.floor(i / smallWidth)), height / smallHeight, height],
  ].map(([values, scale, length]) => {
    const [first, last] = values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -1]);
    return [first * scale, (last + 1) * scale, length];
  });
  const margin = 0.1 * Math.max(...spans.map(([start, end]) => end - start));
  const [[left, right], [top, bottom]] = spans.map(([start, end, length]) => [
    Math.max(0, roundHalfEven(start - margin)),
    Math.min(length, roundHalfEven(end + margin)),
  ]);
  const ratio = (right - left) / (bottom - top);
  const newWidth = ratio < 1 ? roundHalfEven(ratio * size) : size;
  const newHeight = ratio > 1 ? roundHalfEven(size / ratio) : size;
  const [startX, startY] = [roundHalfEven((size - newWidth) / 2), roundHalfEven((size - newHeight) / 2)];
  return channels.map((channel) => {
    const item = resize(crop(channel, left, top, right, bottom), newWidth, newHeight, bicubic, 2);
    const framed = plane(size, size, Math.floor(median(border(channel))));
    paste(framed, item, startX, startY);
    return framed;
  });
}

/** Classify a photograph by the network of a catalogue, whose graph resizes and normalises it. */
async function classifyPhotograph(session, settings, file) {
  const photograph = decode(file);
  const channels = settings.trim ? trim(photograph, settings.size) : photograph;
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
    const probabilities = await (settings ? classifyPhotograph(session, settings, file) : classify(session, preparation, file));
    const best = probabilities.map((value, label) => [names[label], value]).sort((a, b) => b[1] - a[1]);
    console.log(JSON.stringify({ file, classes: best.slice(0, 3) }));
  }
}

module.exports = { decode, prepare, trim };
if (require.main === module) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(error.message);
    process.exit(1);
  });
}

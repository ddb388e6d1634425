// Optional: submits the form when a picture is chosen, accepts dropped and pasted pictures, and searches a part of one.

// The link only contains a picture at the resolution of the model. To search a part of the picture later, this tab stores a
// copy of the newest one: `source` is its data URL, `box` the part that was searched, `link` the encoded picture in the
// link, which is empty until the results are shown.
const storedPicture = {
  read() {
    try {
      return JSON.parse(sessionStorage.getItem("picture"));
    } catch {
      return null;
    }
  },
  write(value) {
    try {
      sessionStorage.removeItem("picture");
      if (value) sessionStorage.setItem("picture", JSON.stringify(value));
    } catch {
      // The browser stores nothing, or the picture is too large: then no part can be chosen.
    }
  },
};

const MAX_COPY_SIDE = 1600;
const keepCopy = async (files) => {
  storedPicture.write(null);
  if (files.length !== 1) return;
  try {
    const bitmap = await createImageBitmap(files[0]);
    const scale = Math.min(1, MAX_COPY_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    storedPicture.write({ source: canvas.toDataURL("image/jpeg", 0.9), box: "", link: "" });
  } catch {
    // This browser cannot decode the file; the server may be able to.
  }
};

const asFile = (source) => {
  const bytes = Uint8Array.from(atob(source.split(",")[1]), (character) => character.charCodeAt(0));
  return new File([bytes], "picture.jpg", { type: "image/jpeg" });
};

const form = document.querySelector("form.search");
if (form) {
  document.documentElement.classList.add("js");
  const input = form.querySelector("input[type=file]");
  const noPicture = form.querySelector("#no-picture");
  const acceptFiles = (files) => {
    // If the browser does not know the type of a file, the server checks it.
    const pictures = [...files].filter((file) => !file.type || file.type.startsWith("image/")).slice(0, 4);
    noPicture.hidden = pictures.length > 0;
    if (!pictures.length) return;
    const chosen = new DataTransfer();
    pictures.forEach((file) => chosen.items.add(file));
    submit(chosen.files);
  };
  const submit = async (files) => {
    await keepCopy(files);
    input.files = files;
    form.requestSubmit();
  };
  input.addEventListener("change", () => input.files.length && submit(input.files));
  // Text is dropped and pasted into fields as usual: spreadsheets add a picture of the copied cells to it.
  const hasFiles = (event) => event.dataTransfer.types.includes("Files");
  const isText = (event) =>
    event.clipboardData.types.includes("text/plain") && event.target.matches("input[type=search], input[type=number]");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    form.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || form.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    form.classList.remove("dropping");
    if (!hasFiles(event)) return;
    event.preventDefault();
    acceptFiles(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData.files;
    if (files.length && !isText(event)) acceptFiles(files);
  });
}

// The copy belongs to the picture of the first results page after its upload; an error page drops it.
const inLink = new URLSearchParams(location.search).getAll("picture");
const copy = storedPicture.read();
if (copy && !copy.link) {
  copy.link = inLink.length === 1 ? inLink[0] : "";
  storedPicture.write(copy.link ? copy : null);
}

const opener = document.querySelector("#choose-part");
if (form && opener && copy?.link && copy.link === inLink[0]) {
  const panel = document.querySelector("#part");
  const whole = panel.querySelector(".whole");
  const rectangle = panel.querySelector(".box");
  const MIN_SIDE = 0.03;
  const STEP = 0.02;
  let box = copy.box ? copy.box.split(",").map(Number) : [0, 0, 1, 1];
  const limit = (value, low, high) => Math.min(high, Math.max(low, value));
  const percent = (value) => Math.round(100 * value);
  const setBounds = (element, [left, top, right, bottom]) => {
    element.style.left = `${100 * left}%`;
    element.style.top = `${100 * top}%`;
    element.style.width = `${100 * (right - left)}%`;
    element.style.height = `${100 * (bottom - top)}%`;
  };
  const showBox = () => {
    const [left, top, right, bottom] = box;
    setBounds(rectangle, box);
    panel.querySelector("#part-status").textContent =
      `From ${percent(left)} to ${percent(right)}% of the width, ${percent(top)} to ${percent(bottom)}% of the height.`;
  };
  const pointerPosition = (event) => {
    const frame = whole.getBoundingClientRect();
    return [
      limit((event.clientX - frame.left) / frame.width, 0, 1),
      limit((event.clientY - frame.top) / frame.height, 0, 1),
    ];
  };
  let start = null;
  let before = box;
  whole.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    // A click on an item is no drag; one that begins there is, see below.
    if (!event.target.matches(".item")) whole.setPointerCapture(event.pointerId);
    [start, before] = [pointerPosition(event), box];
  });
  whole.addEventListener("pointermove", (event) => {
    if (!start) return;
    const end = pointerPosition(event);
    const isDrag = [0, 1].some((side) => Math.abs(end[side] - start[side]) >= MIN_SIDE);
    if (!whole.hasPointerCapture(event.pointerId)) {
      if (!isDrag) return;
      whole.setPointerCapture(event.pointerId);
    }
    box = [0, 1].map((side) => Math.min(start[side], end[side]));
    box = [...box, ...[0, 1].map((side) => Math.max(start[side], end[side]))];
    showBox();
  });
  const endDrag = (event) => {
    if (!start) return;
    start = null;
    // A tap is not a rectangle.
    if (event.type === "pointercancel" || box[2] - box[0] < MIN_SIDE || box[3] - box[1] < MIN_SIDE) box = before;
    showBox();
  };
  whole.addEventListener("pointerup", endDrag);
  whole.addEventListener("pointercancel", endDrag);
  const DIRECTIONS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1] };
  rectangle.addEventListener("keydown", (event) => {
    const direction = DIRECTIONS[event.key];
    if (!direction) return;
    event.preventDefault();
    const [axis, sign] = direction;
    const size = box[axis + 2] - box[axis];
    if (event.shiftKey) {
      box[axis + 2] = limit(box[axis + 2] + sign * STEP, box[axis] + MIN_SIDE, 1);
    } else {
      box[axis] = limit(box[axis] + sign * STEP, 0, 1 - size);
      box[axis + 2] = box[axis] + size;
    }
    showBox();
  });
  const search = (part) => {
    const files = new DataTransfer();
    files.items.add(asFile(copy.source));
    form.querySelector("input[type=file]").files = files.files;
    const field = document.createElement("input");
    [field.type, field.name, field.value] = ["hidden", "box", part];
    form.append(field);
    storedPicture.write({ ...copy, box: part, link: "" });
    form.requestSubmit();
  };
  const hint = document.querySelector("#items");
  const showItems = (items) => {
    if (!items.length) return;
    hint.textContent = `${items.length} parts stand out from the background: choose one to search for it alone.`;
    hint.hidden = false;
    panel.querySelector("#part-hint").prepend("Click an outlined part to search for it. ");
    items.forEach((part, number) => {
      const item = document.createElement("button");
      [item.type, item.className] = ["button", "item"];
      item.setAttribute("aria-label", `Search part ${number + 1} of ${items.length}`);
      setBounds(item, part.split(",").map(Number));
      item.addEventListener("click", () => search(part));
      whole.append(item);
    });
  };
  const findItems = async () => {
    const body = new FormData();
    body.append("picture", asFile(copy.source));
    try {
      const response = await fetch("/items", { method: "POST", body });
      if (!response.ok) return;
      copy.items = (await response.json()).items.map((item) => item.box);
      // Another picture or part may be on its way by now.
      if (storedPicture.read()?.link === copy.link) storedPicture.write(copy);
      showItems(copy.items);
    } catch {
      // Without an answer, a rectangle can still be dragged.
    }
  };
  // Only photographs have a place for the hint.
  if (hint && copy.items) showItems(copy.items);
  else if (hint) findItems();
  panel.querySelector("#search-part").addEventListener("click", () => search(box.map((side) => side.toFixed(4)).join(",")));
  panel.querySelector("#search-whole").addEventListener("click", () => search(""));
  opener.hidden = false;
  opener.addEventListener("click", () => {
    panel.hidden = !panel.hidden;
    opener.setAttribute("aria-expanded", String(!panel.hidden));
    if (panel.hidden) return;
    const image = panel.querySelector("img");
    image.src = copy.source;
    showBox();
    rectangle.focus({ preventScroll: true });
    // The height of the panel is known once the picture is decoded.
    image.decode().then(() => panel.scrollIntoView({ block: "nearest" }), () => {});
  });
}

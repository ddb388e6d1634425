// The page works without this: it saves a click where a picture is chosen, and takes one that is dropped or pasted.
const form = document.querySelector("form.search");
if (form) {
  document.documentElement.classList.add("js");
  const input = form.querySelector("input[type=file]");
  const take = (files) => {
    const pictures = [...files].filter((file) => file.type.startsWith("image/")).slice(0, 4);
    if (!pictures.length) return;
    const chosen = new DataTransfer();
    pictures.forEach((file) => chosen.items.add(file));
    input.files = chosen.files;
    form.requestSubmit();
  };
  input.addEventListener("change", () => input.files.length && form.requestSubmit());
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    form.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || form.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("dropping");
    take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
}

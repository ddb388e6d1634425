// Optional: submits the form when a picture is chosen, and accepts dropped and pasted pictures.
const form = document.querySelector("form.search");
if (form) {
  document.documentElement.classList.add("js");
  const input = form.querySelector("input[type=file]");
  const noPicture = form.querySelector("#no-picture");
  const take = (files) => {
    // If the browser does not know the type of a file, the server checks it.
    const pictures = [...files].filter((file) => !file.type || file.type.startsWith("image/")).slice(0, 4);
    noPicture.hidden = pictures.length > 0;
    if (!pictures.length) return;
    const chosen = new DataTransfer();
    pictures.forEach((file) => chosen.items.add(file));
    input.files = chosen.files;
    form.requestSubmit();
  };
  input.addEventListener("change", () => input.files.length && form.requestSubmit());
  // Text is dropped and pasted into fields as usual; spreadsheets add a picture of the copied cells.
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
    take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData.files;
    if (files.length && !isText(event)) take(files);
  });
}

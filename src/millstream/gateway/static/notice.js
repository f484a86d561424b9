// Times in the reader's own zone, and a second look while something is on its way.
for (const time of document.querySelectorAll("time")) {
  const when = new Date(time.dateTime);
  const today = when.toDateString() === new Date().toDateString();
  time.textContent = when.toLocaleString([], today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}

if (document.body.dataset.wait === "true") {
  const began = Date.now();
  const status = document.getElementById("waiting");
  status.textContent = "Waiting…";
  const look = async () => {
    try {
      const answer = await fetch(location.href, { method: "HEAD", cache: "no-store" });
      if (answer.ok || answer.status === 410 || answer.status === 403) {
        location.reload();
        return;
      }
    } catch {
      // The service itself is away for a moment: look again.
    }
    const seconds = Math.round((Date.now() - began) / 1000);
    if (seconds % 10 < 2) {
      status.textContent = `Waiting for ${seconds} s`;
    }
    setTimeout(look, 2000);
  };
  setTimeout(look, 1000);
}

(() => {
  const videos = [...document.querySelectorAll("video")];
  const button = document.getElementById("toggle");
  if (!button) return;
  const set = (play) => {
    videos.forEach((video) => (play ? video.play().catch(() => {}) : video.pause()));
    button.textContent = play ? "Pause all" : "Play all";
    button.setAttribute("aria-pressed", String(!play));
  };
  button.addEventListener("click", () => set(button.textContent === "Play all"));
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    videos.forEach((video) => video.removeAttribute("autoplay"));
    set(false);
  }
})();

// The list of versions in the sidebar, and a banner on pages that are not those of the newest release. versions.json lies
// beside the folders of all versions: it changes when a release is added, and the pages of older ones stay as they are.
// Pages opened from a file may not read it: there the sidebar has a link to the list.
(async () => {
  if (location.protocol === "file:") return;
  const root = new URL(document.documentElement.dataset.content_root, location.href); // the folder of this version
  const here = root.pathname.split("/").at(-2);
  const page = location.pathname.slice(root.pathname.length);
  const answer = await fetch(new URL("../versions.json", root)).catch(() => null);
  if (!answer?.ok) return;
  const { newest, versions } = await answer.json();

  // Whether another version has a page of this name is known when it is asked for; if not, its first page is shown.
  const first = (version) => new URL(`../${version}/index.html`, root);
  const go = async (version) => {
    const same = new URL(`../${version}/${page}`, root);
    const found = await fetch(same, { method: "HEAD" }).catch(() => null);
    location.assign(found?.ok ? same : first(version));
  };

  const [list, link] = document.querySelectorAll(".versions select, .versions a");
  list.replaceChildren(...versions.map((one) => new Option(one === newest && versions.length > 1 ? `${one} (newest)` : one, one)));
  list.value = here;
  list.hidden = false;
  link.hidden = true;
  list.addEventListener("change", () => go(list.value));
  addEventListener("pageshow", () => { list.value = here; }); // after the browser's Back

  if (here === newest) return;
  const banner = document.createElement("aside");
  banner.className = "admonition warning other-version";
  const there = Object.assign(document.createElement("a"), { href: first(newest), textContent: newest });
  there.addEventListener("click", (event) => { event.preventDefault(); go(newest); });
  banner.append(`You read ${here === "dev" ? "the version in development" : `version ${here}`}; `);
  banner.append("the newest release is ", there, ".");
  document.querySelector("article").prepend(banner);
})();

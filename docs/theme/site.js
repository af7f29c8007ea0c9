// What mdBook does not do: draws the blocks of the language `mermaid`, lets long names in tables break after an
// underscore or a dot, and gives each cell its column's name, which narrow screens show.
(function () {
    for (const code of document.querySelectorAll("td code")) {
        const parts = code.textContent.split(/(?<=[_.])(?=\w)/);
        code.replaceChildren(...parts.flatMap((part) => [part, document.createElement("wbr")]));
    }

    for (const table of document.querySelectorAll("table")) {
        const names = [...table.querySelectorAll("th")].map((cell) => cell.textContent);
        for (const row of table.querySelectorAll("tbody tr")) {
            [...row.children].forEach((cell, column) => (cell.dataset.column = names[column] || ""));
        }
    }

    const blocks = document.querySelectorAll("code.language-mermaid");
    if (blocks.length === 0) return;
    const dark = ["navy", "coal", "ayu"].some((name) => document.documentElement.classList.contains(name));
    const script = document.createElement("script");
    // `path_to_root` is set by mdBook on every page.
    script.src = path_to_root + "theme/mermaid.min.js";
    script.onload = function () {
        for (const block of blocks) {
            const picture = document.createElement("div");
            picture.className = "mermaid";
            picture.textContent = block.textContent;
            block.closest("pre").replaceWith(picture);
        }
        mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "neutral" });
        mermaid.run();
    };
    document.body.appendChild(script);
})();

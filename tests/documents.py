"""What the Markdown of the repository holds: links, anchors, Python code and shell commands."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
import shlex

from markdown_it import MarkdownIt

ROOT = pathlib.Path(__file__).parent.parent
SHELL, DATA = ("", "bash", "sh"), ("text", "json")  # languages of fenced blocks, besides python
# Words with which a span of inline code begins that is a command, after VARIABLE=value.
STARTS = ("python", "python3", "pip", "sbatch", "bash", "time", "apt-get", "ruff")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a page: `words` after the shell's splitting, `variables` set in front of them."""

    page: str
    words: tuple[str, ...]
    variables: dict[str, str] = dataclasses.field(compare=False)

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def pages() -> list[pathlib.Path]:
    """Every Markdown file and notebook that a reader sees."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder, pattern in (
        ("docs", "*.md"),
        ("notebooks", "*.md"),
        ("notebooks", "*.ipynb"),
        ("sparse_vis", "*.md"),
        ("benchmarks", "*.md"),
    ):
        found += sorted((ROOT / folder).rglob(pattern))
    return found


def text_of(page: pathlib.Path) -> str:
    """The Markdown of a page; of a notebook that of its text cells."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def tokens_of(page: pathlib.Path) -> list:
    """markdown-it's tokens, those inside paragraphs, headings and tables too."""
    blocks = MarkdownIt("commonmark").enable("table").parse(text_of(page))
    return [token for block in blocks for token in (block, *(block.children or ()))]


def links(page: pathlib.Path) -> list[str]:
    """Targets of links and pictures."""
    return [value for t in tokens_of(page) for key, value in t.attrs.items() if key in ("href", "src")]


def anchors(page: pathlib.Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    found, tokens = [], tokens_of(page)
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            title = "".join(child.content for child in inline.children)
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            repeated = sum(
                known == slug or re.fullmatch(re.escape(slug) + r"-\d+", known) is not None for known in found
            )
            found.append(f"{slug}-{repeated}" if repeated else slug)
    return set(found)


def fences(page: pathlib.Path) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return [(t.info.strip(), t.content) for t in tokens_of(page) if t.type == "fence"]


def python_blocks(page: pathlib.Path) -> list[str]:
    """Fenced Python code."""
    return [content for language, content in fences(page) if language == "python"]


def code_of(page: pathlib.Path) -> list[str]:
    """All code, inline and in blocks."""
    return [t.content for t in tokens_of(page) if t.type in ("code_inline", "fence")]


def shell_texts(page: pathlib.Path) -> list[str]:
    """Fenced shell code, and inline code that begins like a command."""
    inline = [t.content for t in tokens_of(page) if t.type == "code_inline"]
    begins = re.compile(rf"(\w+=\S+ )*({'|'.join(STARTS)}|launch/\w+\.sh) +\S")
    return [content for language, content in fences(page) if language in SHELL] + [
        x for x in inline if begins.match(x)
    ]


def commands(page: pathlib.Path) -> list[Command]:
    """Every command of a page."""
    found = []
    for text in shell_texts(page):
        for line in text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split, parts = True, [[]]
            for word in lexer:
                if set(word) <= set(";&|"):
                    parts.append([])
                else:
                    parts[-1].append(word)
            found += [command(page, words) for words in parts if words]
    return found


def command(page: pathlib.Path, words: list[str]) -> Command:
    """Words with the variables in front of them taken apart."""
    variables = {}
    while words and (match := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
        variables[match[1]] = match[2]
        words = words[1:]
    words = [word for word in words if word != "time"] if words[:1] == ["time"] else words
    return Command(page.relative_to(ROOT).as_posix(), tuple(words), variables)

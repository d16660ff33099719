"""Links of pages lead somewhere: to a file, to a heading, or to an address that is well formed (nothing is fetched)."""

from urllib.parse import urlsplit

import pytest

from tests.pages import PAGES, ROOT, WORDS, anchors, blocks, links, name

REPORT = ROOT / "build" / "artefacts" / "docs.md"


@pytest.mark.parametrize("page", [name(page) for page in PAGES])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in links(path):
        parts = urlsplit(target)
        if parts.scheme:
            assert parts.scheme == "https", f"{page}: {target}"
            assert "." in parts.netloc, f"{page}: {target}"
            continue
        goal = (path.parent / parts.path).resolve() if parts.path else path
        assert goal.exists(), f"{page} links to {target}, which is not there"
        if parts.fragment:
            assert goal.suffix == ".md", f"{page}: {target}"
            assert parts.fragment in anchors(goal), f"{page}: {target} is no heading of {goal.name}"


def test_what_is_looked_at_is_counted() -> None:
    """Writes build/artefacts/docs.md: how many blocks there are, what becomes of them, what is not run and why."""
    all_blocks = [block for page in PAGES for block in blocks(page)]
    lines = ["| blocks | fence | what is done |", "|---|---|---|"]
    for language, words in WORDS.items():
        for word, done in words.items():
            count = sum((each.language, each.word) == (language, word) for each in all_blocks)
            lines.append(f"| {count} | `{f'{language} {word}'.strip()}` | {done} |")
    still = [
        each for each in all_blocks if not WORDS[each.language][each.word].startswith("run") and each.language == "sh"
    ]
    lines += ["", "Not run:", "", *(f"- {each.at}: {WORDS[each.language][each.word]}" for each in still)]
    targets = [target for page in PAGES for target in links(page)]
    inside = sum(not urlsplit(target).scheme for target in targets)
    lines += [
        "",
        f"{len(PAGES)} pages, {len(all_blocks)} blocks, {inside} links inside, {len(targets) - inside} outside.",
    ]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text("\n".join(lines) + "\n")
    print(REPORT.read_text())
    assert inside > 50
    assert sum(WORDS[each.language][each.word].startswith("run") for each in all_blocks) > 20

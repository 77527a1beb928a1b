"""The page, in a real browser: what it shows, what it asks for, and what it must not run."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from packager.verify.proof import FilesCheck, Proof, TensorFigure
from packager.verify.report import render_report
from tests.verify.browser import Page
from tests.verify.proofs import (
    HOSTILE,
    SCRIPTS,
    make_adapter_target,
    make_behaviour,
    make_figures,
    make_gguf_target,
    make_proof,
    make_target,
    make_weights,
)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with Page(tmp_path / "profile") as opened:
        yield opened


def _open(page: Page, proof: Proof, folder: Path) -> str:
    path = folder / "report.html"
    path.write_text(render_report(proof), encoding="utf-8")
    page.open(path)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    text: str = page.evaluate("document.body.innerText")
    return text


def test_opens_without_a_complaint_or_a_request(page: Page, tmp_path: Path) -> None:
    text = _open(page, make_proof(), tmp_path)
    assert page.complaints() == []
    outside = [url for url in page.requested() if not url.startswith("data:")]
    assert outside == [(tmp_path / "report.html").as_uri()]
    # What the proof holds stands in the page, as it is drawn and not only in its source.
    for figure in (
        "This release does what the adapter learned", "merged/pirate", "adapter/pirate",
        "99.9950\u00a0%", "5.0·10⁻⁵", "1.9·10⁻⁴ nats", "at most 0.0403", "0.9926", "99.73\u00a0%",
        "9 files, 271 MB", "153 of 153 tensors", "182 of 182 adapter tensors",
        "model.layers.0.self_attn.q_proj.weight", "untied-head", "SmolLM2-135M-Instruct@12fd25f7",
        "sha256:" + "ab" * 32, "sha256:" + "cd" * 32, "2.13.0+cpu", "Some processor",
        "byte for byte, the one it was trained on", "kept separate",
    ):  # fmt: skip
        assert figure in text, figure
    assert page.evaluate("document.querySelectorAll('script, iframe, object, form').length") == 0
    pictures = page.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].map(s => "
        "s.getAttribute('aria-labelledby').split(' ').map("
        "id => document.getElementById(id).textContent))"
    )
    assert [title for title, _ in pictures] == [
        "KL per token, on a logarithmic scale", "Size of the change per layer",
        "Share of the change lost to rounding, per layer",
    ]  # fmt: skip
    assert "this release 1.9·10⁻⁴ nats" in pictures[0][1]
    # 30 layers and a column for the head; every tensor and every token has its dot.
    assert page.evaluate("document.querySelectorAll('.bar').length") == 2 * 31
    dots = page.evaluate("[...document.querySelectorAll('.dots')].map(d => d.getTotalLength() + "
                         "'/' + d.getAttribute('d').split('M').length)")  # fmt: skip
    assert dots == ["0/401", "0/401", "0/92", "0/92"]


def test_quantisations_have_a_table_and_a_picture(page: Page, tmp_path: Path) -> None:
    text = _open(page, make_proof(make_gguf_target()), tmp_path)
    assert page.complaints() == []
    rows = page.evaluate(
        "[...document.querySelectorAll('h3 + .scroll tbody tr')].map(r => r.innerText)"
    )
    assert [re.split(r"\s*\t\s*", row) for row in rows] == [
        ["Q4_K_M", "105 MB", "0.153", "3.06", "84.7\u00a0%", "1.0306", "88.4\u00a0%"],
        ["Q8_0", "145 MB", "0.0100", "0.200", "99.0\u00a0%", "1.0020", "99.24\u00a0%"],
    ]
    for words in (
        "the base without the adapter: 1.32", "8 of 8 conversations give llama.cpp the same tokens",
        "6 of 6 answers ended by themselves within 256 tokens", "3.88\u00a0%", "0.567\u00a0%",
        "This release does what the adapter learned", "58 of 544 tensors of 2 files made again",
        "rounds not only weights but also what it multiplies them with",
    ):  # fmt: skip
        assert words in text, words
    assert page.evaluate("document.querySelectorAll('.point').length") == 2


def test_pictures_stay_inside_their_frame(page: Page, tmp_path: Path) -> None:
    _open(page, make_proof(make_adapter_target(), make_target(), make_gguf_target()), tmp_path)
    beyond = page.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].flatMap(s => { const f = "
        "s.getBoundingClientRect(); return [...s.querySelectorAll('text,rect,path,line')].filter("
        "e => { const b = e.getBoundingClientRect(); return b.left < f.left - 1 || b.right > "
        "f.right + 1 || b.top < f.top - 1 || b.bottom > f.bottom + 1; }).map(e => e.outerHTML)})"
    )
    assert beyond == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(page: Page, tmp_path: Path, dark: bool) -> None:
    """Contrast of every text with what lies under it, by WCAG 2's own formula: at least 4.5."""
    failing = make_target(behaviour=make_behaviour(loss=1.0))
    targets = (make_target(), failing, make_target(files=None), make_gguf_target())
    _open(page, make_proof(*targets), tmp_path)
    page.picture(tmp_path / "page.png", dark=dark)
    worst = page.evaluate(
        """(() => {
        const rgb = c => c.match(/[\\d.]+/g).slice(0, 4).map(Number);
        const lum = c => { const [r, g, b] = rgb(c).map(v => { v /= 255;
          return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
          return .2126 * r + .7152 * g + .0722 * b; };
        const ground = e => { for (; e; e = e.parentElement) {
          const c = getComputedStyle(e).backgroundColor;
          if ((rgb(c)[3] ?? 1) > 0) return c; } return "none"; };
        let low = 99, where = "";
        for (const e of document.querySelectorAll("main *")) {
          if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
          if (["STYLE", "title", "desc"].includes(e.tagName)) continue;
          const style = getComputedStyle(e);
          const ink = e.tagName === "text" ? style.fill : style.color;
          const [a, b] = [lum(ink), lum(ground(e))].sort((x, y) => y - x);
          const ratio = (a + .05) / (b + .05);
          if (ratio < low) { low = ratio; where = e.outerHTML.slice(0, 200); } }
        return [low, where, getComputedStyle(document.body).backgroundColor]; })()"""
    )
    assert worst[2] == ("rgb(18, 21, 27)" if dark else "rgb(250, 249, 246)")
    assert worst[0] >= 4.5, worst


def test_hostile_names_stay_text(page: Page, tmp_path: Path) -> None:
    figures = (TensorFigure(HOSTILE, HOSTILE, 1, 0.1, 0.1, 0.5),)
    weights = make_weights(
        figures=figures, by_rule={HOSTILE: (1, 1)}, problems=(f"{HOSTILE} differs",)
    )
    target = make_target(
        name=HOSTILE, weights=weights, behaviour=None, skipped={"behaviour": HOSTILE}
    )
    proof = make_proof(
        target, base=HOSTILE, base_digest=HOSTILE, evidence=HOSTILE, adapters={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE}, machine=HOSTILE, created=HOSTILE,
    )  # fmt: skip
    text = _open(page, proof, tmp_path)
    shown = "</script><img src=x onerror=alert(1)>\\x1b[31m\\u202e{{7*7}}"
    assert text.count(shown) >= 13
    assert page.evaluate("document.title").endswith(shown)
    assert page.evaluate("document.querySelectorAll('img, script').length") == 0
    assert page.complaints() == []
    assert len([url for url in page.requested() if not url.startswith("data:")]) == 1


def test_the_policy_stops_what_would_get_through(page: Page, tmp_path: Path) -> None:
    """Were markup ever to slip in, it could neither run nor call."""
    path = tmp_path / "report.html"
    slipped = "<img src='https://example.org/x.png'><script>document.title = 'taken'</script>"
    path.write_text(render_report(make_proof()).replace("</main>", slipped), encoding="utf-8")
    page.open(path)
    assert page.evaluate("document.title") != "taken"
    assert all("Content Security Policy" in str(entry) for entry in page.complaints())
    assert len(page.complaints()) == 2


def test_every_script_survives(page: Page, tmp_path: Path) -> None:
    text = _open(page, make_proof(make_target(name=SCRIPTS), base=SCRIPTS), tmp_path)
    assert f"merged/{SCRIPTS}" in text
    assert page.evaluate("document.characterSet") == "UTF-8"


def test_says_first_what_failed_and_why() -> None:
    failing = make_target(name="b", behaviour=make_behaviour(loss=1.0))
    text = html.unescape(render_report(make_proof(make_target(name="a"), failing)))
    assert '<header class="verdict failed">' in text
    assert "<h1>Do not publish this release</h1>" in text
    assert text.index("merged/b") < text.index("merged/a")
    assert "effect_lost is 1, more than 0.0105" in text
    assert "0\u00a0% of the adapter's effect kept" in text


def test_says_what_was_not_checked() -> None:
    reason = "needs about 34.1 GiB of memory, 21.0 GiB are free"
    target = make_target(behaviour=None, skipped={"behaviour": reason})
    text = html.unescape(render_report(make_proof(target)))
    assert '<header class="verdict partial">' in text
    assert f"not checked: {reason}" in text
    assert "KL per token" not in text


def test_takes_no_figures_zeros_and_very_many() -> None:
    zero = make_behaviour(loss=0.0, effect=0.0)
    idle = make_weights(figures=(TensorFigure("w", "lora", 0, 0.0, 0.0, 0.0),))
    assert "NaN" not in render_report(make_proof(make_target(weights=idle, behaviour=zero)))
    assert render_report(make_proof(make_target(weights=make_weights(figures=()))))
    assert "Nothing was checked" in render_report(make_proof(make_target(
        files=None, weights=None, behaviour=None)))  # fmt: skip
    many = make_weights(
        figures=make_figures(6000),
        problems=tuple(f"tensor {i} differs" for i in range(5000)),
    )
    behaviour = make_behaviour(tokens=4096)
    text = render_report(
        make_proof(make_target(
            files=FilesCheck(10**6, 10**13, ()), weights=many, behaviour=behaviour))
    )  # fmt: skip
    assert len(text) < 3_000_000
    assert "The first 100 of 18\u202f001 changed tensors" in text
    assert "and 4\u202f800 more, all of them in VERIFY.json" in text
    assert "10.0 TB" in text
    assert len(re.findall(r'class="bar"', text)) < 2 * 700

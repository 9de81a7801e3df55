"""The page of a running system, read as a program does and in a Chromium; and the page while nothing runs."""

import re

import httpx
import pytest

from serving import metrics
from serving.nearline import metrics as nearline_metrics
from serving.page import document, serve

NEW = 5_001


def rows(section, caption):
    """The rows of a section's table whose caption begins so, as values by column."""
    for table in section["tables"]:
        if table["caption"].startswith(caption):
            return [{name: cell["value"] for name, cell in row.items()} for row in table["rows"]]
    return []


def test_numbers_of_every_process_are_there_and_move_with_events(system, data, wait_for):
    system.rank()
    wait_for(lambda: rows(data()["sections"]["requests"], "Answered OK"))
    (before,) = wait_for(lambda: rows(data()["sections"]["index"], "Rows"))
    assert before["coverage"] == 1.0
    system.send(NEW)
    system.log.append([b"no event"])

    def has_arrived():
        found = data()["sections"]
        captions = {"Events": "stream", "Dead letters": "stream", "Changes": "replicas"}
        told = [rows(found[section], caption) for caption, section in captions.items()]
        return found if all(told) and rows(found["index"], "Rows")[0]["rows"] > before["rows"] else None

    found = wait_for(has_arrived)
    (events,) = rows(found["stream"], "Events")
    assert events["events"] == 2 and events["items"] == 1
    wait_for(lambda: rows(data()["sections"]["stream"], "Events")[0]["p99"])
    assert [r["reason"] for r in rows(found["stream"], "Dead letters")] == ["not JSON"]
    (replica,) = rows(found["replicas"], "Changes")
    assert replica["target"] == system.grpc and replica["version"] == "7"
    wait_for(lambda: rows(data()["sections"]["replicas"], "Changes")[0]["lag"] == 0)
    assert rows(found["versions"], "Versions") == [
        {"version": "7", "model": "tfmm", "server": system.addresses["server"][0], "state": "AVAILABLE", "labels": None}
    ]
    (judged,) = rows(found["trainer"], "The newest slice")
    assert (judged["model"], judged["slice"], judged["rows"], judged["auc"]) == ("multimodal", 3, 500, 0.71)
    assert rows(found["index"], "Sources")[0]["letters"] == 1


@pytest.mark.parametrize("width", [1200, 360])
def test_page_opens_in_a_browser_and_refreshes_itself(system, page_of, chromium, width):
    said = []
    with chromium.new_context(viewport={"width": width, "height": 800}, color_scheme="dark") as context:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(f"{request.url} failed"))
        page.goto(page_of)
        cell = page.locator("#stream table tbody tr td:nth-child(7)")
        system.send(NEW + width)
        before = cell.first.inner_text() if cell.count() else "0"
        system.send(NEW + width + 1)
        page.wait_for_function(
            "was => { const found = document.querySelector('#stream tbody tr td:nth-child(7)');"
            " return found && Number(found.textContent) > Number(was) }", arg=before, timeout=60_000,
        )  # fmt: skip
        assert page.locator("#state").inner_text()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 31)"
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll, the page does not
        for table in page.locator("table").all():
            heads = table.locator("thead th[scope=col]").count()
            assert heads and table.locator("tbody tr").first.locator("th[scope=row], td").count() == heads
        assert not said


def test_what_the_server_renders_is_what_the_browser_makes_of_the_document(page_of, chromium):
    page = chromium.new_page()
    page.goto(page_of)
    first = page.evaluate("document.querySelector('main').innerHTML")
    document_of = page.evaluate("fetch('/data.json').then(answer => answer.json())")
    page.evaluate("found => { document.querySelector('main').replaceChildren(); show(found) }", document_of)
    made = page.evaluate("document.querySelector('main').innerHTML")
    page.close()

    def shape(html):  # numbers move between the two
        html = re.sub(r">\s+|\s+<", lambda found: found.group().strip(), html)
        return re.sub(r'd="[^"]*"|aria-label="from [^"]*"|<span[^>]*>[^<]*</span>', "", html)

    assert shape(first) == shape(made)


def test_page_says_what_does_not_answer_and_since_when(tmp_path, chromium, serving_board):
    addresses = {kind: ["127.0.0.1:1"] for kind in document.KINDS}
    board = document.Board(addresses, f"sqlite:///{tmp_path}/none.sqlite", every_s=0.2)
    said = []
    with serving_board(board) as url:
        page = chromium.new_page()
        page.on("console", lambda message: said.append(message.text))
        assert page.goto(url).status == 200
        page.wait_for_function("document.querySelectorAll('p.bad').length >= 7", timeout=60_000)
        text = page.inner_text("main")
        page.close()
    for kind in document.KINDS:
        assert f"no answer from {kind} 127.0.0.1:1 since the page was started" in text
    assert "none.sqlite does not exist" in text and not said


def test_a_process_that_goes_is_said_with_the_moment_and_comes_back(serving_board, wait_for):
    registry = nearline_metrics.Metrics().registry
    with metrics.served(registry, 0, "127.0.0.1") as port:
        pass
    board = document.Board({"trainer": [f"127.0.0.1:{port}"]}, every_s=0.2)
    with serving_board(board) as url:

        def section():
            (found,) = httpx.get(f"{url}data.json", timeout=30).json()["sections"]
            return found

        for _ in range(2):
            with metrics.served(registry, port, "127.0.0.1"):
                wait_for(lambda: section()["tables"] and not section()["notes"])
            (note,) = wait_for(lambda: section()["notes"])
            assert re.match(f"✗ no answer from trainer 127.0.0.1:{port} since [-0-9: ]+ UTC: .*refused", note["text"])
            assert not section()["tables"]


def test_page_off_this_machine_needs_tls_as_the_server_does(tmp_path):
    with pytest.raises(ValueError, match="faces a network: give --ssl_config_file, or --allow_insecure"):
        serve.verify("0.0.0.0", "", False)
    assert serve.verify("0.0.0.0", "", True) is None
    assert serve.verify("127.0.0.1", "", False) is None


def test_page_runs_no_script_but_its_own(page_of):
    answer = httpx.get(page_of)
    (nonce,) = set(re.findall(r'nonce="([^"]+)"', answer.text))
    assert f"script-src 'nonce-{nonce}'" in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in re.sub(r'http://www\.w3\.org/\S+', "", answer.text.split("<main>")[0])

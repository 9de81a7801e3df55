"""The page of a running system, read as a program does and in a Chromium; the page while nothing runs; alert rules."""

import re
import shutil
import subprocess

import httpx
import pytest
import yaml
from prometheus_client import parser

from serving import metrics
from serving.deploy import started
from serving.nearline import metrics as nearline_metrics
from serving.page import document, serve, watching

NEW = 5_001
OWN = {"up": {"job", "instance"}}  # Prometheus makes them itself
LABELS_OF_SCRAPES = {"job", "instance"}
SELECTOR = re.compile(r"(:?\b(?:tfmm_|tensorflow:)[\w:]+|\bup\b)(?:\{([^}]*)\})?")


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

    def of_log(found, caption):
        return [row for row in rows(found["stream"], caption) if row["source"] == system.log.name]

    def has_arrived():
        found = data()["sections"]
        taken = sum(row["events"] or 0 for row in of_log(found, "Events"))
        has_letter = of_log(found, "Dead letters") and any(row["letters"] for row in rows(found["index"], "Sources"))
        has_row = rows(found["index"], "Rows")[0]["rows"] > before["rows"] and rows(found["replicas"], "Changes")
        return found if taken >= 2 and has_letter and has_row else None

    found = wait_for(has_arrived)
    (events,) = of_log(found, "Events")
    assert events["events"] == 2 and events["items"] == 1
    assert [row["reason"] for row in of_log(found, "Dead letters")] == ["not JSON"]
    wait_for(lambda: [row for row in rows(data()["sections"]["stream"], "Events") if row["p99"]])
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
        page.set_default_timeout(240_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(f"{request.url} failed"))
        page.goto(page_of)
        system.send(NEW + width - 1)
        page.wait_for_selector(f"#stream tr:has-text('{system.log.name}')")
        taken = """name => { const rows = [...document.querySelectorAll('#stream tbody tr')];
            return Number(rows.find(row => row.cells[0].textContent === name).cells[6].textContent) }"""
        before = page.evaluate(taken, system.log.name)
        system.send(NEW + width, title="<img src=x onerror=console.log(1)>")
        more = f"([name, was]) => ({taken})(name) > was"
        page.wait_for_function(more, arg=[system.log.name, before])
        page.wait_for_selector("#items th:has-text('<img src=x')")
        assert page.locator("#state").inner_text()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 31)"
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll, the page does not
        for table in page.locator("table").all():
            heads = table.locator("thead th[scope=col]").count()
            assert heads and table.locator("tbody tr").first.locator("th[scope=row], td").count() == heads
        assert not said


def test_what_the_server_renders_is_what_the_browser_makes_of_the_document(page_of, chromium):
    def shape(html):  # numbers move between the two
        html = re.sub(r">\s+|\s+<", lambda found: found.group().strip(), html)
        return re.sub(r'd="[^"]*"|aria-label="[^"]*"|<span[^>]*>[^<]*</span>', "", html)

    page = chromium.new_page()
    page.set_default_timeout(240_000)
    for _ in range(100):  # and rows and notes, now and then
        page.goto(page_of)
        first = page.evaluate("document.querySelector('main').innerHTML")
        document_of = page.evaluate("fetch('/data.json').then(answer => answer.json())")
        page.evaluate("found => { document.querySelector('main').replaceChildren(); show(found) }", document_of)
        made = page.evaluate("document.querySelector('main').innerHTML")
        if shape(first) == shape(made):
            break
    page.close()
    assert shape(first) == shape(made)


def test_page_says_what_does_not_answer_and_since_when(tmp_path, chromium, serving_page):
    addresses = {kind: ["127.0.0.1:1"] for kind in document.KINDS}
    index, events = f"sqlite:///{tmp_path}/none.sqlite", tmp_path / "events.sqlite"
    told, said = {"target": "127.0.0.1:1", "events_url": str(events)}, []
    with serving_page(addresses=addresses, index_url=index, **told) as url:
        page = chromium.new_page()
        page.set_default_timeout(240_000)
        page.on("console", lambda message: said.append(message.text))
        assert page.goto(url).status == 200
        page.wait_for_function("() => document.querySelectorAll('p.bad').length >= 7")
        text = page.inner_text("main")
        page.close()
    for kind in document.KINDS:
        assert f"no answer from {kind} 127.0.0.1:1 since the page was started" in text
    assert "none.sqlite does not exist" in text and not said
    assert not events.exists(), "looking makes no log"


def test_a_browser_brings_the_token_that_it_was_told(chromium, serving_page):
    """By its own dialog, or in the URL, which no script's relative request may take over."""
    token, refused = "0123456789abcdef", []
    with serving_page(token, addresses={"server": ["127.0.0.1:1"]}) as url:
        assert httpx.get(url, timeout=60).status_code == 401
        named, told = url.replace("//", f"//operator:{token}@"), {"username": "operator", "password": token}
        for address, settings in ((url, {"http_credentials": told}), (named, {})):
            with chromium.new_context(**settings) as context:
                page = context.new_page()
                page.set_default_timeout(240_000)
                assert page.goto(address).status == 200
                page.on("response", lambda answer: refused.append(answer.url) if answer.status != 200 else None)
                for _ in range(2):  # as it refreshes itself
                    with page.expect_response("**/data.json"):
                        pass
    assert not refused


def test_a_process_that_goes_is_said_with_the_moment_and_comes_back(serving_page, wait_for):
    registry = nearline_metrics.Metrics().registry
    (port,) = started.free_ports(1)
    said = re.compile(f"✗ no answer from trainer 127.0.0.1:{port} since [-0-9: ]+ UTC: .*refused")
    with serving_page(addresses={"trainer": [f"127.0.0.1:{port}"]}) as url:

        def section():
            (found,) = httpx.get(f"{url}data.json", timeout=60).json()["sections"]
            return found

        for _ in range(2):
            with metrics.served(registry, port, "127.0.0.1"):
                wait_for(lambda: section()["tables"] and not section()["notes"])
            wait_for(lambda: any(said.match(note["text"]) for note in section()["notes"]))
            assert not section()["tables"]


def test_a_new_item_has_its_picture_its_neighbors_and_its_score_before_and_after(system, data, page_of, wait_for):
    system.send(NEW + 5_000)

    seen = {}

    def item():
        seen["items"] = data()["sections"]["items"]
        found = [row for table in seen["items"]["tables"] for row in table["rows"]]
        newest = found[0] if found and found[0]["item"]["value"] == NEW + 5_000 else {}
        is_whole = newest.get("near_vector", {}).get("list") and newest.get("state", {}).get("level") == "ok"
        return newest if is_whole else None

    found = wait_for(item, seen)
    assert found["item"]["text"] == f"item number {NEW + 5_000}"
    answer = httpx.get(page_of.rstrip("/") + found["item"]["image"], timeout=60)
    assert answer.headers["content-type"] == "image/png" and answer.content.startswith(b"\x89PNG")
    assert abs(found["with"]["value"] - found["served"]["value"]) < 1e-5
    assert abs(found["with"]["value"] - found["without"]["value"]) > 1e-5
    assert [len(found["near_vector"]["list"]), found["near_vector"]["list"][0]["value"] in range(100, 140)] == [4, True]

    def logged():
        text = httpx.get(system.addresses["server"][0] + "/metrics", timeout=60).text
        return float(re.search(r'tfmm_served_log_records_total{log="served",state="written"} ([0-9.]+)', text).group(1))

    wait_for(lambda: logged() >= system.ranked)
    assert logged() == system.ranked, "the page's own questions are no rankings"
    codes = [httpx.get(f"{page_of}picture/{name}", timeout=60).status_code for name in "1x"]
    assert codes == [404, 404]


def test_page_off_this_machine_needs_tls_as_the_server_does(tmp_path):
    with pytest.raises(ValueError, match="faces a network: give --ssl_config_file, or --allow_insecure"):
        serve.verify("0.0.0.0", "", False)
    assert serve.verify("0.0.0.0", "", True) is None
    assert serve.verify("127.0.0.1", "", False) is None


def test_page_runs_no_script_but_its_own(page_of):
    answer = httpx.get(page_of, timeout=60)
    (nonce,) = set(re.findall(r'nonce="([^"]+)"', answer.text))
    assert f"script-src 'nonce-{nonce}'" in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in re.sub(r'http://www\.w3\.org/\S+', "", answer.text.split("<main>")[0])


@pytest.fixture(scope="module")
def told(system, wait_for):
    """The labels of every sample that a process tells, by name; a family without samples yet counts with none."""
    system.rank()
    system.send(6_001)
    system.log.append([b"no event"])

    def read():
        found = {}
        for addresses in system.addresses.values():
            for address in addresses:
                text = httpx.get(watching.metrics_url(address), timeout=60).text
                for family in parser.text_string_to_metric_families(text):
                    for sample in family.samples:
                        found.setdefault(sample.name, set()).update(sample.labels)
        late = {"tfmm_stream_dead_letters_total", "tfmm_replica_lag_rows", "tfmm_stream_watermark_seconds"}
        return found if late <= set(found) else None

    return wait_for(read)


@pytest.fixture(scope="module")
def rules(root):
    found = yaml.safe_load((root / "serving" / "deploy" / "alerts.yaml").read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def test_each_rule_asks_for_metrics_and_labels_that_real_processes_have(told, rules):
    known, asked = {**told, **OWN}, set()
    for rule in rules:
        selectors = SELECTOR.findall(rule["expr"])
        assert selectors, rule
        labels = set(LABELS_OF_SCRAPES)
        for name, matchers in selectors:
            assert name in known, (rule["alert"], name)
            asked.add(name)
            labels |= known[name]
            matched = set(re.findall(r"(\w+)\s*[=!]", matchers))
            assert matched <= known[name] | LABELS_OF_SCRAPES, (rule["alert"], name, matched)
        clauses = re.findall(r"(?:by|on)\s*\(([^)]*)\)", rule["expr"])
        grouped = {name.strip() for clause in clauses for name in clause.split(",")}
        written = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert grouped | written <= labels, (rule["alert"], grouped | written, labels)
    parts = {name.split("_")[1] for name in asked if name.startswith("tfmm")}
    assert parts >= {"model", "replica", "stream", "nearline", "index"}


def test_rules_have_a_name_each_a_severity_and_a_summary(root, rules):
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names) and all(name.startswith("Tfmm") for name in names)
    assert {rule["labels"]["severity"] for rule in rules} == {"page", "ticket"}
    assert all(rule["annotations"]["summary"] for rule in rules)
    if promtool := shutil.which("promtool"):
        path = root / "serving" / "deploy" / "alerts.yaml"
        done = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

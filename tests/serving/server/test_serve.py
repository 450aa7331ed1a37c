"""The server as a process, driven by a real HTTP client: answers, refusals, reloads and its end."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from recsys_emb import load_artifact
from recsys_emb.data.options import make_source
from recsys_emb.data.store import open_dataset
from recsys_emb.serving import write_artifact
from recsys_emb.training.run_dir import RunDir

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

MAX_BODY, MAX_ROWS = 100_000, 60
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}


@contextmanager
def serving(artifact: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of a server."""
    command = [sys.executable, "-m", "recsys_emb", "serve", str(artifact), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "http://127.0.0.1:" in line, process.stderr and process.stderr.read()
            url = line.split()[-1]
            while True:
                try:
                    assert httpx.get(f"{url}/health").json()["status"] == "ok"
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            yield url, process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def artifacts(run_of: Callable[[str], RunDir], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of the same fields."""
    folder = tmp_path_factory.mktemp("artifacts")
    write_artifact(run_of("full"), folder / "full", evaluate=False)
    write_artifact(run_of("hash"), folder / "hash", evaluate=False)
    return folder / "full", folder / "hash"


@pytest.fixture(scope="module")
def frame(prepared: Path) -> pl.DataFrame:
    """Raw rows of the fields."""
    dataset = open_dataset(prepared)
    rows = next(make_source(dataset.manifest["source"], options=dataset.manifest["options"]).inputs()).frame
    schema = dataset.schema
    return rows.select(*schema.dense, *(f.name for f in schema.embedded))[:40]


@pytest.fixture(scope="module")
def server(artifacts: tuple[Path, Path]) -> Iterator[str]:
    bounds = ("--max-body", str(MAX_BODY), "--max-rows", str(MAX_ROWS), "--body-seconds", "1")
    with serving(artifacts[0], *bounds) as (url, _):
        yield url


def columns(frame: pl.DataFrame) -> dict[str, list[Any]]:
    return frame.to_dict(as_series=False)


def stream(frame: pl.DataFrame) -> bytes:
    sink, table = io.BytesIO(), frame.to_arrow()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_every_body_gets_the_artifacts_predictions(
    server: str, artifacts: tuple[Path, Path], frame: pl.DataFrame
) -> None:
    expected = load_artifact(artifacts[0]).logits(frame)
    first, *others = frame.columns
    same = frame.with_columns(pl.col(first).first())
    bodies = [{"rows": columns(frame)}, {"rows": frame.to_dicts()}]
    answers = [httpx.post(f"{server}/predict", json=body) for body in bodies]
    answers.append(httpx.post(f"{server}/predict", content=stream(frame), headers=ARROW))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json()["logits"], expected, atol=1e-6)
        np.testing.assert_allclose(answer.json()["probabilities"], 1 / (1 + np.exp(-expected)), atol=1e-6)
    shared = {"rows": columns(frame.select(others)), "shared": {first: same[first][0]}}
    answer = httpx.post(f"{server}/predict", json=shared)
    np.testing.assert_allclose(answer.json()["logits"], load_artifact(artifacts[0]).logits(same), atol=1e-6)
    arrow = httpx.post(f"{server}/predict", json=bodies[0], headers={"accept": ARROW["content-type"]})
    table = pa.ipc.open_stream(arrow.content).read_all()
    np.testing.assert_allclose(table["logit"].to_numpy(), expected, atol=1e-6)


def test_schema_and_metrics(server: str, frame: pl.DataFrame) -> None:
    fields = httpx.get(f"{server}/schema").json()["fields"]
    assert sorted(field["name"] for field in fields) == sorted(frame.columns)
    assert {field["role"] for field in fields} >= {"categorical"}

    def count(status: int) -> float:
        name = f'recsys_emb_requests_total{{path="/predict",status="{status}"}} '
        lines = httpx.get(f"{server}/metrics").text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    good, bad = count(200), count(400)
    httpx.post(f"{server}/predict", json={"rows": columns(frame)})
    httpx.post(f"{server}/predict", json={"rows": 3})
    assert (count(200), count(400)) == (good + 1, bad + 1)


def damaged(frame: pl.DataFrame) -> dict[str, tuple[dict[str, Any], int, str]]:
    """What is sent, the status, and what the error says."""
    rows, name = columns(frame), frame.columns[0]
    number = next(c for c in frame.columns if frame[c].dtype.is_float())
    typed = {"content-type": "application/json"}
    first, *others = frame.head(2).to_dicts()
    lacking = {key: value for key, value in first.items() if key != name}
    return {
        "no JSON": ({"content": b'{"rows": {"a"', "headers": typed}, 400, "body: Invalid JSON"),
        "empty": ({"content": b"", "headers": typed}, 400, "body: Invalid JSON"),
        "no UTF-8": ({"content": b'{"rows": "\xff"}', "headers": typed}, 400, "body: "),
        "deep": ({"content": b"[" * 50_000, "headers": typed}, 400, "body: "),
        "no rows": ({"json": {"shared": {}}}, 400, "rows"),
        "unknown key": ({"json": {"rows": rows, "share": {}}}, 400, "share"),
        "a field lacks": ({"json": {"rows": columns(frame.drop(name))}}, 422, f"no field {name!r}"),
        "a row lacks it": ({"json": {"rows": [lacking, *others]}}, 400, f"field {name!r}: not in row 0"),
        "a text as number": ({"json": {"rows": {**rows, number: ["x"] * len(frame)}}}, 422, f"field {number!r}"),
        "infinite": ({"content": json.dumps({"rows": {**rows, number: [1e308 * 10] * len(frame)}}), "headers": typed},
                     422, f"field {number!r}"),
        "objects": ({"json": {"rows": {**rows, name: [{"a": 1}] * len(frame)}}}, 422, f"field {name!r}"),
        "uneven": ({"json": {"rows": {**rows, name: rows[name][:-1]}}}, 422, "the columns make no table"),
        "shared twice": ({"json": {"rows": rows, "shared": {name: 1}}}, 422, f"field {name!r}: both shared"),
        "no Arrow": ({"content": b"nonsense", "headers": ARROW}, 400, "no Arrow stream"),
        "half of Arrow": ({"content": stream(frame)[:-200], "headers": ARROW}, 400, "no Arrow stream"),
        "another type": ({"content": b"x", "headers": {"content-type": "text/csv"}}, 415, "content-type 'text/csv'"),
        "too many rows": ({"json": {"rows": columns(pl.concat([frame, frame]))}}, 413, "80 rows; a request may have"),
        "too large": ({"content": b" " * (MAX_BODY + 1), "headers": typed}, 413, "larger than 100,000 bytes"),
    }  # fmt: skip


def test_bodies_that_are_refused_say_why(server: str, frame: pl.DataFrame) -> None:
    for case, (sent, status, message) in damaged(frame).items():
        answer = httpx.post(f"{server}/predict", **sent)
        assert answer.status_code == status, (case, answer.status_code, answer.text)
        assert message in answer.json()["error"], (case, answer.text)
        assert "\n" not in answer.json()["error"]
    assert httpx.get(f"{server}/predict").status_code == 405
    assert httpx.get(f"{server}/nowhere").json() == {"error": "Not Found"}
    assert httpx.post(f"{server}/predict", json={"rows": columns(frame)}).status_code == 200


def test_a_body_without_a_stated_length_is_bounded(server: str) -> None:
    pieces = (b" " * 1000 for _ in range(1000))
    answer = httpx.post(f"{server}/predict", content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_slow_body_is_given_up_and_holds_nobody_up(server: str, frame: pl.DataFrame) -> None:
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        assert httpx.post(f"{server}/predict", json={"rows": columns(frame)}).status_code == 200
        slow.settimeout(20)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def hammer(url: str, body: dict[str, Any], stop: threading.Event) -> list[Any]:
    """Answers, or the error, of one client's requests until ``stop``, or until the server does not listen."""
    got: list[Any] = []
    with httpx.Client(timeout=30) as client:
        while not stop.is_set():
            try:
                got.append(client.post(f"{url}/predict", json=body))
            except httpx.TransportError as error:
                got.append(error)
                break
    return got


def test_reloads_under_load_drop_nothing(artifacts: tuple[Path, Path], frame: pl.DataFrame, tmp_path: Path) -> None:
    link, stop = tmp_path / "current", threading.Event()
    expected = [load_artifact(path).logits(frame) for path in artifacts]
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    link.symlink_to(artifacts[0])
    with serving(link) as (url, _), ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(hammer, url, {"rows": columns(frame)}, stop) for _ in range(4)]
        for number in range(6):
            (tmp_path / "next").symlink_to(artifacts[(number + 1) % 2])
            os.replace(tmp_path / "next", link)
            at_once = [pool.submit(httpx.post, f"{url}/reload", timeout=30) for _ in range(2)]
            assert [reload.result().status_code for reload in at_once] == [200, 200]
        damaged = tmp_path / "damaged"
        shutil.copytree(artifacts[1], damaged)
        (damaged / "dense.safetensors").write_bytes(b"x")
        (tmp_path / "next").symlink_to(damaged)
        os.replace(tmp_path / "next", link)
        refused = httpx.post(f"{url}/reload", timeout=30)
        assert (refused.status_code, "dense.safetensors" in refused.json()["error"]) == (409, True)
        last = httpx.post(f"{url}/predict", json={"rows": columns(frame)}).json()["logits"]
        stop.set()
        answers = [answer for client in clients for answer in client.result()]
    np.testing.assert_allclose(last, expected[0], atol=1e-6)
    assert {answer.status_code for answer in answers} == {200}
    by = [min((0, 1), key=lambda i: np.abs(answer.json()["logits"] - expected[i]).max()) for answer in answers]
    assert set(by) == {0, 1}
    for answer, which in zip(answers, by):  # all rows of an answer are of one artifact
        np.testing.assert_allclose(answer.json()["logits"], expected[which], atol=1e-6)


def test_sigterm_under_load_answers_what_was_asked(artifacts: tuple[Path, Path], frame: pl.DataFrame) -> None:
    """A client whose request was taken gets its answer; whoever comes later finds nobody listening."""
    expected, stop = load_artifact(artifacts[0]).logits(frame), threading.Event()
    with serving(artifacts[0]) as (url, process), ThreadPoolExecutor(4) as pool:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"rows": columns(frame)}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection((host, int(port))) as halfway:
            halfway.sendall(head.encode() + b"\r\n" + body[:-1])
            clients = [pool.submit(hammer, url, {"rows": columns(frame)}, stop) for _ in range(3)]
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            answers = [client.result() for client in clients]
            halfway.sendall(body[-1:])
            halfway.settimeout(20)
            assert halfway.recv(100_000).startswith(b"HTTP/1.1 200")
        assert process.wait(20) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    for *good, last in answers:
        assert good
        for answer in good:
            assert answer.status_code == 200
            np.testing.assert_allclose(answer.json()["logits"], expected, atol=1e-6)
        assert isinstance(last, httpx.TransportError)
        assert not isinstance(last, httpx.ReadError) or "reset" in str(last)


def test_mistakes_before_it_listens(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, message in (
            ([str(tmp_path / "none")], "no such folder"),
            ([str(artifacts[0]), "--port", port], f"--port {port}: cannot be listened on"),
        ):
            command = [sys.executable, "-m", "recsys_emb", "serve", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 2
            assert message in done.stderr
            assert len(done.stderr.splitlines()) == 1

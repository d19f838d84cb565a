"""Sweeps on a dask scheduler: the rows of one process, and sentences where something is missing.

pip install -e '.[cluster]'
"""

import builtins
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest

import numsim as ns
from numsim.sweep import cluster
from numsim.sweep.cluster import on_cluster

SMALL = {"formats": ["int8", "int4"], "granularities": ["per_tensor"], "limit_tokens": 60}
needs_dask = "the cluster is an extra: pip install -e '.[cluster]'"


@pytest.fixture
def scheduler():
    """Return a function that starts a scheduler with so many workers and gives its address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed = pytest.importorskip("distributed", reason=needs_dask)
        clusters = []

        def start(workers, *, processes=False, failures=3):
            import dask

            with dask.config.set({"distributed.scheduler.allowed-failures": failures}):
                clusters.append(
                    distributed.LocalCluster(
                        n_workers=workers, threads_per_worker=1, processes=processes,
                        protocol="tcp", dashboard_address=None, silence_logs=50,
                    )
                )  # fmt: skip
            return clusters[-1].scheduler_address

        yield start
        for each in clusters:
            each.close()


BEGUN = []


def begin(factor):
    BEGUN.append(factor)
    return factor


def multiply(state, item):
    if item == "die":
        os._exit(1)
    if isinstance(item, Path):  # done once the file is there
        end = time.monotonic() + 30
        while not item.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return item.name if item.exists() else "never"
    if item == "refuse":
        raise ns.NumsimError("refuse: in its own words")
    return state * item


def test_a_cluster_gives_the_rows_of_one_process(tmp_path, monkeypatch, scheduler):
    (tmp_path / "strict.toml").write_text(ns.get_target("ideal.int", overflow="raise").to_toml())
    monkeypatch.chdir(tmp_path)  # the unit goes to the workers, not its path
    grid = SMALL | {"formats": ["int32", "int8"], "targets": ["strict.toml"], "window": 32}
    tables, seen = [], []
    for more in ({}, {"scheduler": scheduler(2)}):
        out = tmp_path / f"{len(tables)}.csv"
        with pytest.raises(ns.NumsimError, match="1 cases failed: int32"):
            ns.sweep(grid | {"out": out} | more, progress=lambda *what: seen.append(what))
        lines = out.read_text().splitlines()
        seconds = lines[0].split(",").index("seconds")
        tables.append([r.split(",")[:seconds] + r.split(",")[seconds + 1 :] for r in lines])
    assert tables[0] == tables[1]
    assert seen[-1][1] == seen[-1][2]


def test_a_worker_starts_once_and_errors_are_sentences(scheduler):
    address = scheduler(1)
    BEGUN.clear()
    assert sorted(on_cluster(begin, 10, multiply, [3, 1, 2], address=address)) == [10, 20, 30]
    assert BEGUN == [10]
    assert cluster._STATE == {}
    assert list(on_cluster(begin, 11, multiply, [1], address=address)) == [11]
    with pytest.raises(ns.NumsimError, match=r"^refuse: in its own words$"):
        list(on_cluster(begin, 10, multiply, [1, "refuse"], address=address))
    with pytest.raises(ns.NumsimError, match="a worker could not run a case"):
        list(on_cluster(begin, 10, multiply, [None], address=address))


def test_a_slow_case_holds_no_other_back(tmp_path, scheduler):
    late = tmp_path / "late"
    found = on_cluster(begin, 10, multiply, [late, 1, 2, 3], address=scheduler(2, processes=True))
    assert {next(found) for _ in range(3)} == {10, 20, 30}
    late.touch()
    assert list(found) == ["late"]


def test_a_case_of_a_lost_worker_runs_on_another(tmp_path, scheduler):
    late = tmp_path / "late"
    address = scheduler(2, processes=True)
    found = on_cluster(begin, 10, multiply, [late, 1], address=address)
    assert next(found) == 10
    with cluster.connected(address) as client:
        running = {w for w, keys in client.processing().items() if keys}
        pids = client.run(os.getpid)
        (busy,) = (pids[w] for w in running)
        os.kill(busy, signal.SIGKILL)
    late.touch()
    assert list(found) == ["late"]


def test_a_lost_worker_is_a_sentence(scheduler):
    address = scheduler(1, processes=True, failures=0)
    with pytest.raises(ns.NumsimError, match="1 workers were lost while they ran one case"):
        list(on_cluster(begin, 10, multiply, ["die"], address=address))


def test_a_scheduler_that_is_not_there(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT", 1)
    monkeypatch.setattr(
        sys.modules["numsim.sweep.prepare"], "load_model", lambda *a, **k: pytest.fail("loaded")
    )
    with pytest.raises(ns.NumsimError, match="no dask scheduler answers"):
        ns.sweep(SMALL | {"scheduler": "tcp://127.0.0.1:9"})
    with pytest.raises(ns.NumsimError, match="scheduler has no worker"):
        ns.sweep(SMALL | {"scheduler": scheduler(0)})
    with pytest.raises(ns.NumsimError, match="got both; leave one out"):
        ns.sweep(SMALL | {"scheduler": "tcp://127.0.0.1:9", "jobs": 1})


@pytest.mark.parametrize(
    "address",
    ["nowhere", "", " ", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://127.0.0.1:0",
     "tcp://127.0.0.1:99999", "tcp://[::1:8786", "pigeon://a:1", "tcp://a b:1", "tcp://a:1/x",
     "tcp://127.0.0.1:8786\n", "tcp://a\0b:1", "http://127.0.0.1:8786", "tcp://127.0.0.1:٣",
     "127.0.0.1:8786:1", "x" * 10000, "tcp://" + "x" * 300 + ":1", "tcp://no.such.host.invalid:1"],
)  # fmt: skip
def test_a_malformed_address_is_a_sentence_before_anything_is_tried(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)  # not asked
    with pytest.raises(ns.NumsimError, match=r"no dask scheduler answers at .* start one") as error:
        ns.sweep(SMALL | {"scheduler": address})
    assert "\n" not in str(error.value)


def test_addresses_that_may_be_right():
    for address in ("tcp://127.0.0.1:8786", "tls://127.0.0.1:1/", "127.0.0.1:8786",
                    "tcp://[::1]:8786", "inproc://10.0.0.1/12/1"):  # fmt: skip
        cluster.check_address(address)


def test_without_the_extra(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("distributed"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ns.NumsimError, match=r"pip install 'numsim\[cluster\]'"):
        ns.sweep(SMALL | {"scheduler": "tcp://127.0.0.1:8786"})

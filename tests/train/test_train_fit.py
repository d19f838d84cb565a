"""The loop: it learns, follows float64, goes on after a kill, and names what is not finite."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import numsim as ns
from numsim import nn, train
from numsim.errors import NumsimError, StoppedError
from numsim.kernels.jit import using_threads
from numsim.train.classifier import read_corpus
from numsim.train.fit import permutation

F32 = np.float32
MLP = nn.Sequential(a=nn.Linear(6, 12), act=nn.Activation("gelu"), b=nn.Linear(12, 3))
EXACT = {
    "sgd": train.SGD(0.05, momentum=0.9), "adam": train.Adam(5e-3), "adamw": train.AdamW(5e-3),
}  # fmt: skip


def numbers(seed=0, n=64):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(F32)
    return x, (x[:, :3].argmax(axis=1)).astype(np.int64)


def same(one, other):
    assert list(one.params) == list(other.params)
    for name, p in one.params.items():
        q = other.params[name]
        if isinstance(p, ns.QTensor):
            np.testing.assert_array_equal(p.codes, q.codes)
            np.testing.assert_array_equal(p.scale, q.scale)
        else:
            np.testing.assert_array_equal(p, q)
            assert p.dtype == q.dtype
    for a, b in ((one.history, other.history), (one.tensors, other.tensors)):
        assert a.equals(b)
        assert list(a.dtypes) == list(b.dtypes)
    assert one.test_loss == other.test_loss


def run(recipe, steps=12, **more):
    x, t = numbers()
    given = {"loss": "cross_entropy", "optimizer": train.Adam(0.01), "batch": 16, "seed": 4} | more
    return train.fit(MLP, nn.init(MLP), (x, t), recipe=recipe, steps=steps, **given)


@pytest.mark.parametrize("recipe", [None, *train.list_recipes()])
def test_the_loss_falls_and_what_came_is_not_changed(recipe):
    x, t = numbers()
    params = nn.init(MLP)
    before = {k: v.copy() for k, v in params.items()}
    made = train.fit(MLP, params, (x, t), loss="cross_entropy", recipe=recipe, steps=40, batch=32,
                     optimizer=train.Adam(0.02), test=(x, t), every=100)  # fmt: skip
    for name, p in params.items():
        np.testing.assert_array_equal(p, before[name])
    losses = made.history["loss"]
    assert list(made.history["step"]) == list(range(1, 41))
    assert np.isfinite(losses).all()
    falls = losses.iloc[-5:].mean() < 0.8 * losses.iloc[:5].mean()
    assert falls or recipe in ("q3.4", "q3.4_stored_rne", "nvfp4")
    assert made.history["test_loss"].notna().sum() == 1
    storage = recipe is not None and "stored" in recipe
    for name, p in made.params.items():  # biases stay float32
        assert isinstance(p, ns.QTensor) == (storage and before[name].ndim > 1)


@pytest.mark.parametrize("name", EXACT)
def test_exact_products_follow_the_float64_run(name):
    x, t = numbers()
    got, want = (
        train.fit(MLP, nn.init(MLP), (x, t), loss="cross_entropy", recipe=recipe, steps=50,
                  batch=16, optimizer=EXACT[name]).history["loss"]
        for recipe in (train.recipe("float32", target="ideal.exact"), None)
    )  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_classifier_with_exact_products_follows_the_float64_run():
    texts = read_corpus(length=6)
    got, want = (
        train.classify(recipe=recipe, steps=50, batch=8, texts=texts, every=1000).history["loss"]
        for recipe in (train.recipe("float32", target="ideal.exact"), None)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_batches_are_permutations_of_the_seed_and_the_epoch():
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        assert sorted(permutation(50, seed, epoch).tolist()) == list(range(50))
    assert np.any(permutation(50, 0, 0) != permutation(50, 0, 1))
    assert np.any(permutation(50, 0, 0) != permutation(50, 1, 0))


def test_a_step_is_forward_loss_backward_and_update():
    x, t = numbers()
    recipe = train.recipe("fp8_hybrid")
    made = run(recipe, steps=5, decay="linear")
    params, opt = nn.init(MLP), train.Adam(0.01)
    state = opt.init(params)
    for k in range(5):
        epoch, at = divmod(k, 4)
        rows = permutation(64, 4, epoch)[16 * at : 16 * at + 16]
        y, tape = nn.forward(MLP, params, x[rows], recipe=recipe, step=k + 1)
        value, g = nn.loss("cross_entropy", y, t[rows])
        assert made.history["loss"][k] == value
        _, grads = nn.backward(tape, g)
        params, state = train.Adam(0.01 * (1 - k / 5)).step(params, grads, state)
    for name, p in params.items():
        np.testing.assert_array_equal(made.params[name], p)


CASES = {
    "fp8_stored_sr": {"optimizer": train.Adam(0.01, moments="float8_e5m2", seed=2)},
    "int8_stored_sr": {"loss_scale": train.LossScale(init=2.0**100, interval=3)},
    "fp8_delayed": {"decay": "linear"},
    "nvfp4": {"optimizer": train.SGD(0.1, momentum=0.9)},
    "q3.4_stored_rne": {"optimizer": train.AdamW(0.01, amsgrad=True)},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_resumed_at_any_step_every_later_bit_is_the_same(tmp_path, name):
    x, t = numbers(9)
    more = {"test": (x, t), "every": 3, "watch": 2} | CASES[name]
    want = run(name, **more)

    class Cut(Exception):
        pass

    for at in (2, 3, 7, 11):
        folder = tmp_path / str(at)

        def cut(step, steps, loss, at=at):
            if step == at:
                raise Cut

        with pytest.raises(Cut):
            run(name, checkpoint=folder, progress=cut, **more)
        same(run(name, checkpoint=folder, resume=True, **more), want)
        same(run(name, checkpoint=folder, resume=True, **more), want)  # nothing is left to do


KILLED = """
    import sys
    sys.path[:0] = {path!r}
    import test_train_fit as t
    from numsim import train
    print("go", flush=True)
    t.run({name!r}, steps=60, checkpoint={folder!r}, resume=True, every=1,
          progress=lambda step, *_: print(step, flush=True), **t.CASES[{name!r}])
"""


@pytest.mark.parametrize("name", ["fp8_stored_sr"])
@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, name):
    want = run(name, steps=60, every=1, **CASES[name])
    folder = tmp_path / "run"
    rng = np.random.default_rng(len(name))
    here = os.path.dirname(__file__)  # noqa: PTH120
    code = textwrap.dedent(KILLED.format(path=[here], name=name, folder=str(folder)))
    for _ in range(2):  # twice: the second begins with what the first left
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "go\n"
        for _ in range(int(rng.integers(3, 20))):
            child.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.01)))
        child.send_signal(signal.SIGKILL)
        child.communicate()
    left = [p.name for p in folder.iterdir() if not p.name.endswith(".part")]
    assert left == ["checkpoint.safetensors"]
    same(run(name, steps=60, checkpoint=folder, resume=True, every=1, **CASES[name]), want)


def test_threads_change_no_bit():
    with using_threads(1):
        want = run("fp8_stored_sr")
    with using_threads(2) as possible:
        if possible:
            same(run("fp8_stored_sr"), want)


@pytest.mark.parametrize(
    ("change", "fact"),
    [({"recipe": "int8"}, "recipe"), ({"optimizer": train.SGD(0.1)}, "optimizer"),
     ({"batch": 8}, "batch"), ({"steps": 13}, "steps"), ({"seed": 5}, "seed"),
     ({"decay": "linear"}, "decay"), ({"loss_scale": train.LossScale()}, "loss_scale")],
)  # fmt: skip
def test_a_checkpoint_of_another_run(tmp_path, change, fact):
    run("fp8_hybrid", checkpoint=tmp_path)
    with pytest.raises(NumsimError, match=f"another run: {fact}") as caught:
        run(**({"recipe": "fp8_hybrid", "checkpoint": tmp_path, "resume": True} | change))
    assert not isinstance(caught.value, StoppedError)


def test_a_checkpoint_of_other_data_another_model_or_version(tmp_path, monkeypatch):
    run("fp8_hybrid", checkpoint=tmp_path)
    x, t = numbers(1)
    common = {"loss": "cross_entropy", "optimizer": train.Adam(0.01), "batch": 16, "seed": 4,
              "steps": 12, "recipe": "fp8_hybrid", "checkpoint": tmp_path,
              "resume": True}  # fmt: skip
    with pytest.raises(NumsimError, match="another run: data"):
        train.fit(MLP, nn.init(MLP), (x, t), **common)
    with pytest.raises(NumsimError, match="another run: data"):
        run("fp8_hybrid", checkpoint=tmp_path, resume=True, test=(x, t))
    other = nn.Sequential(a=nn.Linear(6, 12), act=nn.Activation("relu"), b=nn.Linear(12, 3))
    with pytest.raises(NumsimError, match="another run: model"):
        train.fit(other, nn.init(other), numbers(), **common)
    monkeypatch.setattr(sys.modules["numsim.train.fit"], "__version__", "0.0.0")
    with pytest.raises(NumsimError, match="another run: numsim_version"):
        run("fp8_hybrid", checkpoint=tmp_path, resume=True)


def content(file):
    """Return what a checkpoint holds; the file's header has no order of its own."""
    with safe_open(file, framework="numpy") as opened:
        names = opened.keys()
        arrays = {n: opened.get_tensor(n) for n in names}
        head = opened.metadata()
    return head, {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in sorted(arrays.items())}


def test_damaged_and_foreign_checkpoints(tmp_path):
    run("fp8_hybrid", checkpoint=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    whole = file.read_bytes()
    for size in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(NumsimError, match="damaged"):
            run("fp8_hybrid", checkpoint=tmp_path, resume=True)
    save_file({"w": np.ones(3)}, file)
    with pytest.raises(NumsimError, match="is no checkpoint"):
        run("fp8_hybrid", checkpoint=tmp_path, resume=True)
    shutil.copy(train.bundled_model() / "model.safetensors", file)
    with pytest.raises(NumsimError, match="is no checkpoint"):
        run("fp8_hybrid", checkpoint=tmp_path, resume=True)
    file.unlink()
    run("fp8_hybrid", checkpoint=tmp_path, resume=True)  # begins where there is none
    again = content(file)
    file.write_bytes(whole)
    assert again == content(file)


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found(tmp_path):
    how = {"optimizer": train.Adam(0.01, storage="float8_e4m3fn", moments="bfloat16"), "steps": 3}
    run("fp8_delayed", checkpoint=tmp_path, **how)
    file = tmp_path / "checkpoint.safetensors"
    whole = file.read_bytes()
    for at in range(0, len(whole), 61):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 7]) + whole[at + 1 :])
        with pytest.raises(NumsimError, match=r"is damaged|is no checkpoint"):
            run("fp8_delayed", checkpoint=tmp_path, resume=True, **how)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NumsimError, match="cannot write"):
        run("fp8_hybrid", checkpoint=tmp_path / "file" / "more")
    with pytest.raises(NumsimError, match="cannot write"):
        run("fp8_hybrid", checkpoint=tmp_path / ("x" * 300))


@pytest.mark.parametrize("recipe", [None, "float32", "fp8_hybrid", "int8"])
def test_nan_in_weights_names_step_and_tensor(recipe):
    params = nn.init(MLP)
    params["b.weight"][1, 2] = np.nan
    with pytest.raises(NumsimError, match=r"step 1, (the weight of b|the parameter b\.weight)"):
        train.fit(MLP, params, numbers(), loss="cross_entropy", recipe=recipe, steps=2, batch=8,
                  optimizer=train.SGD(0.1))  # fmt: skip


NETS = {
    "linear": (nn.Linear(6, 3), {"weight": 3e38}, r"the output of the product|the output of \(L"),
    "product": (MLP, {"a.weight": 3e38}, "the output of the product a"),
    "bias": (MLP, {"b.bias": np.inf}, r"the parameter b\.bias"),
    "norm": (nn.Sequential(n=nn.LayerNorm(6), b=nn.Linear(6, 3)), {"n.bias": np.nan},
             r"the parameter n\.bias"),
    "cell": (nn.Sequential(flat=nn.LSTM(6, 3), last=nn.Last()),
             {"flat.weight_ih": 3e38, "flat.weight_hh": -3e38}, r"the output of flat \(LSTM\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", NETS)
def test_the_first_value_that_is_not_finite_is_named_with_its_operator(what):
    layer, wrong, message = NETS[what]
    params = nn.init(layer)
    for name, value in wrong.items():
        params[name][:] = value
    x, t = numbers()
    if what == "cell":
        x = np.repeat(x[:, None], 2, axis=1)
    with pytest.raises(StoppedError, match=rf"step 1, ({message}).*forward: values are finite"):
        train.fit(layer, params, (1e3 * x, t), loss="cross_entropy", recipe="float32", steps=2,
                  batch=8, optimizer=train.SGD(0.1))  # fmt: skip


def test_a_layer_without_a_name_is_called_the_product():
    with pytest.raises(StoppedError, match="step 1, the input of the product: quantize"):
        train.fit(nn.Linear(6, 3), nn.init(nn.Linear(6, 3)), (np.full((8, 6), 1e300), T[:8]),
                  loss="cross_entropy", recipe="int8", steps=1, batch=8,
                  optimizer=train.SGD(0.1))  # fmt: skip


def test_of_gradients_the_last_layers_is_named_first():
    params = nn.init(MLP)
    params["b.weight"][:] = 1e20
    x, t = numbers()
    with pytest.raises(StoppedError, match=r"step 1, the gradient of a\.bias, backward"):
        train.fit(MLP, params, (x, 1e30 * np.eye(3)[t]), loss="mse", recipe="float32", steps=2,
                  batch=8, optimizer=train.SGD(0.1))  # fmt: skip


@pytest.mark.parametrize("recipe", [None, "float32", "fp8_hybrid", "fp8_delayed"])
def test_a_run_that_diverges_keeps_the_checkpoint_of_the_step_before(tmp_path, recipe):
    common = {"optimizer": train.SGD(1e30), "loss": "cross_entropy", "every": 100}
    with pytest.raises(StoppedError, match=r"step \d+, .*; the checkpoint of step") as caught:
        run(recipe, checkpoint=tmp_path, **common)
    done = int(str(caught.value).split("the checkpoint of step ")[1].split()[0])
    want = []
    with pytest.raises(StoppedError):
        run(recipe, progress=lambda *a: want.append(a), **common)
    assert done == len(want)
    for _ in range(2):  # it ends there again, with the same checkpoint
        kept = content(tmp_path / "checkpoint.safetensors")
        with pytest.raises(StoppedError):
            run(recipe, checkpoint=tmp_path, resume=True, **common)
        assert content(tmp_path / "checkpoint.safetensors") == kept


def steps_by_hand(recipe, count, x, t, *, batch=16):
    """Return parameters and delayed scales after so many steps of `run`."""
    params, opt = nn.init(MLP), train.Adam(0.01)
    state, scaling = opt.init(params), {}
    for k in range(count):
        epoch, at = divmod(k, len(x) // batch)
        rows = permutation(len(x), 4, epoch)[batch * at : batch * at + batch]
        y, tape = nn.forward(MLP, params, x[rows], recipe=train.recipe(recipe), step=k + 1,
                             scaling=scaling)  # fmt: skip
        _, grads = nn.backward(tape, nn.loss("cross_entropy", y, t[rows])[1])
        params, state = opt.step(params, grads, state)
    return params, scaling


def test_a_score_that_fails_leaves_the_checkpoint_of_the_step_before(tmp_path):
    """The update was made, the unseen data overflow: parameters of one step, not of the next."""
    x, t = numbers()
    w = nn.init(MLP)["a.weight"]
    far = x.copy()
    far[0] = np.sign(w[np.abs(w).sum(axis=1).argmax()]) * F32(3.4e38)
    with pytest.raises(StoppedError, match="checkpoint of step 4"):
        run("fp8_hybrid", steps=6, checkpoint=tmp_path, test=(far, t), every=5)
    with safe_open(tmp_path / "checkpoint.safetensors", framework="numpy") as file:
        kept = {n: file.get_tensor(f"/params/{n}") for n in nn.param_shapes(MLP)}
    for name, p in steps_by_hand("fp8_hybrid", 4, x, t)[0].items():
        np.testing.assert_array_equal(kept[name], p)


def test_loss_scaling_skips_what_overflows_on_its_way_back():
    """The upstream gradient is finite; a product of the backward pass is not."""
    x, t = numbers()
    params = nn.init(MLP)
    params["b.weight"] *= F32(1024)

    def losses(**more):
        return train.fit(MLP, params, (x, t), loss="cross_entropy", recipe="fp8_hybrid", steps=20,
                         batch=16, optimizer=train.SGD(1e-3), **more).history  # fmt: skip

    made = losses(loss_scale=train.LossScale(init=2.0**126, interval=1000))
    scales = made["loss_scale"].to_numpy()
    skipped = int((scales[1:] < scales[:-1]).sum())
    assert 0 < skipped < 19
    assert list(scales[: skipped + 1]) == [2.0 ** (126 - k) for k in range(skipped + 1)]
    assert made["loss"].iloc[skipped + 1] != made["loss"].iloc[skipped]


def test_a_gradient_that_no_loss_scale_makes_finite_ends_the_run():
    layer = nn.Linear(2, 1, bias=False)
    x = np.full((4, 2), 1e38, F32)
    data = (x, np.zeros((4, 1)))
    with np.errstate(over="ignore"), pytest.raises(NumsimError, match="step"):
        train.fit(layer, {"weight": np.full((1, 2), 0.1, F32)}, data, loss="mse", recipe="float32",
                  steps=400, batch=4, optimizer=train.SGD(0.1),
                  loss_scale=train.LossScale(init=1.0))  # fmt: skip


def test_unseen_data_are_scored_under_the_delayed_scales_of_training():
    x, t = numbers()
    small = x * F32(2.0**-12)  # under a scale of 1 all of it is beneath E4M3's least number
    made = train.fit(MLP, nn.init(MLP), (small, t), loss="cross_entropy", recipe="fp8_delayed",
                     steps=4, batch=16, seed=4, optimizer=train.Adam(0.01),
                     test=(small, t))  # fmt: skip
    params, scaling = steps_by_hand("fp8_delayed", 4, small, t)
    before = {k: v.multiplier for k, v in scaling.items()}
    common = {"loss": "cross_entropy", "recipe": "fp8_delayed"}
    want = train.evaluate(MLP, params, (small, t), scaling=scaling, **common)
    assert made.test_loss == want[0]
    assert made.test_loss != train.evaluate(MLP, params, (small, t), **common)[0]
    assert {k: v.multiplier for k, v in scaling.items()} == before  # read, not extended


def test_squares_against_0_and_1_have_an_accuracy_and_others_none():
    layer, params = nn.Linear(1, 1), {"weight": np.ones((1, 1)), "bias": np.zeros(1)}
    x = np.array([[0.2], [0.6], [0.4], [0.9]])
    for targets, want in (([0, 1, 1, 1], 0.75), ([[0], [1], [0], [1]], 1.0), ([0, 1, 2, 1], None)):
        assert train.evaluate(layer, params, (x, targets), loss="mse")[1] == want


def test_a_batch_without_a_label_that_counts_is_not_scored():
    layer, params = nn.Linear(1, 2), {"weight": np.array([[1.0], [-1.0]]), "bias": np.zeros(2)}
    x, few = np.array([[0.5], [1.0], [-1.0], [2.0]]), np.array([-100, 0, -100, -100])
    want = train.evaluate(layer, params, (x[1:2], few[1:2]), loss="cross_entropy")
    for batch in (1, 2, 4):
        assert train.evaluate(layer, params, (x, few), loss="cross_entropy", batch=batch) == want
        with pytest.raises(NumsimError, match="every label is -100"):
            train.evaluate(layer, params, (x, few * 0 - 100), loss="cross_entropy", batch=batch)


def test_watched_tensors_by_hand():
    made = run("q3.4", steps=4, watch=2)
    table = made.tensors
    assert sorted(set(table["step"])) == [2, 4]
    assert set(table["role"]) == {"x", "w", "g", "parameter"}
    stored = run("fp8_stored_rne", steps=3, watch=1)
    rows = stored.tensors[stored.tensors["role"] == "parameter"]
    assert rows["moved_rate"].between(0, 1).all()
    from numsim.train.watch import describe, moved

    q = ns.quantize(np.array([-8.0, 8.0, 0.01, 0.0, 7.9375], F32), "q3.4")
    row = describe(3, "n", "x", np.array([-8.0, 8.0, 0.01, 0.0, 7.9375], F32), q)
    assert row[:8] == (3, "n", "x", "q3.4", 8.0, 1 / 5, 1 / 4, 2 / 5)
    assert row[9:] == (0.0625, 7.9375, "2^-7:1 2^2:1 2^3:2")
    a = ns.QTensor.from_codes(np.array([1, 2, 3], np.int8), "int8", scale=F32(1))
    b = ns.QTensor.from_codes(np.array([1, 2, 4], np.int8), "int8", scale=F32(1.5))
    ((*_, share, _, _, _),) = moved(1, {"w": a}, {"w": b})
    assert share == pytest.approx(1 / 3)  # codes, not the values that a new scale changes


X, T = numbers()


def bad(**more):
    given = {"loss": "cross_entropy", "optimizer": train.SGD(0.1), "steps": 2, "batch": 4,
             "recipe": "fp8_hybrid", "data": (X, T)} | more  # fmt: skip
    layer = given.pop("layer", MLP)
    return train.fit(layer, given.pop("params", nn.init(layer) if layer is MLP else {}),
                     given.pop("data"), **given)  # fmt: skip


BAD = {
    "layer": {"layer": 5}, "loss": {"loss": "l1"}, "steps": {"steps": 0}, "batch": {"batch": 0},
    "huge batch": {"batch": 65}, "float steps": {"steps": 2.0}, "every": {"every": 0},
    "watch": {"watch": 0}, "decay": {"decay": "cosine"}, "optimizer": {"optimizer": 0.1},
    "recipe": {"recipe": "fp9"}, "model recipe": {"recipe": ns.Recipe((("*", ns.Rule()),))},
    "no pair": {"data": X}, "ragged": {"data": ([[1.0, 2.0], [3.0]], [0, 1])},
    "lengths": {"data": (X, T[:-1])}, "empty": {"data": (X[:0], T[:0])},
    "text": {"data": (np.array([["a"] * 6] * 8), T[:8])},
    "NaN": {"data": (np.where(X[3, 3] == X, np.nan, X), T)},
    "Inf in targets": {"data": (X, np.where(T == 1, np.inf, T))},
    "labels": {"data": (X, T + 1)}, "float labels": {"data": (X, T.astype(float))},
    "width": {"data": (X[:, :5], T)}, "params": {"params": {}},
    "ids": {"layer": nn.Embedding(3, 2), "params": {"weight": np.ones((3, 2))}, "loss": "mse",
            "data": (T + 1, np.ones((64, 2))), "recipe": None},
    "numbers for ids": {"layer": nn.Embedding(3, 2), "params": {"weight": np.ones((3, 2))},
                        "loss": "mse", "data": (X[:, 0], np.ones((64, 2))), "recipe": None},
    "bce": {"loss": "bce_with_logits", "data": (X, np.full((64, 3), 1.5))},
    "other storage": {"recipe": "fp8_stored_rne", "optimizer": train.SGD(0.1, storage="int8")},
    "loss array": {"loss": X}, "seed": {"seed": 1.5}, "negative seed": {"seed": -1},
    "seed word": {"seed": "a"}, "loss scale": {"loss_scale": 1024.0},
    "checkpoint": {"checkpoint": 5}, "NUL": {"checkpoint": "a\0b"}, "progress": {"progress": True},
    "resume": {"resume": "no"}, "ragged weight": {
        "params": nn.init(MLP) | {"b.weight": [[1.0], [1.0, 2.0]]},
        "optimizer": train.SGD(0.1, storage="e4m3")},
    "target shape": {"loss": "mse", "data": (X, np.ones((64, 2)))},
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    with pytest.raises(NumsimError) as caught:
        bad(**BAD[what])
    assert "\n" not in str(caught.value)


LSTM = nn.LSTM(2, 3)


@pytest.mark.parametrize("bad", [
    lambda: nn.Linear(0, 1), lambda: nn.Linear(2.0, 1), lambda: nn.Activation(["relu"]),
    lambda: nn.Activation("rlu"), lambda: nn.LayerNorm(4, eps=-1.0), lambda: nn.RMSNorm(4, eps="x"),
    lambda: nn.LayerNorm(4, eps=np.nan), lambda: nn.Conv2d(1, 1, (2, 2, 2)),
    lambda: nn.Conv1d(1, 1, 3, padding=-1), lambda: nn.Sequential(), lambda: nn.Sequential(a=5),
    lambda: nn.init(5), lambda: nn.init(MLP, seed=-1), lambda: nn.from_model(5),
    lambda: nn.forward(LSTM, nn.init(LSTM), np.ones((2, 0, 2))),
    lambda: nn.forward(LSTM, nn.init(LSTM), np.ones((2, 3, 2)), np.ones((3, 3))),
    lambda: nn.forward(LSTM, nn.init(LSTM), np.ones((2, 3, 2)), np.ones((1, 2, 3))),
    lambda: nn.forward(LSTM, nn.init(LSTM), [[1, 2]]),
    lambda: nn.forward(nn.Attention(), {}, *[np.ones((1, 3, 2, 4))] * 2, np.ones((1, 2, 2, 4))),
    lambda: nn.forward(nn.Attention(causal=True), {}, np.ones((1, 1, 3, 4)),
                       *[np.ones((1, 1, 2, 4))] * 2),
    lambda: nn.forward(nn.Conv1d(1, 1, 5), nn.init(nn.Conv1d(1, 1, 5)), np.ones((1, 1, 3))),
    lambda: linear([[1.0, 2.0], [3.0]]), lambda: linear([["a", "b"]]),
    lambda: linear(np.ones((1, 2), complex)), lambda: linear(None),
    lambda: linear(np.ones((1, 2)), [[1.0, 2.0], [3.0]]),
    lambda: linear(np.ones((1, 2)), [["a", "b"]]),
    lambda: linear(np.ones((1, 2)), np.zeros((0, 2))), lambda: linear(np.ones((1, 2)), None),
    lambda: linear(np.ones((1, 2)), up=[[1.0], [1.0, 2.0]]),
    lambda: linear(np.ones((1, 2)), up=[[1]]),
    lambda: linear(np.ones((1, 2)), up="a"), lambda: nn.backward(5),
    lambda: nn.forward(nn.Linear(2, 1), {"weight": np.ones((1, 2)), "bais": [1.0]}, [[1.0, 2.0]]),
    lambda: nn.forward(nn.Linear(2, 1), [1.0], [[1.0, 2.0]]),
    lambda: nn.forward(nn.Linear(2, 1), nn.init(nn.Linear(2, 1)), [[1.0, 2.0]], step=-1),
    lambda: nn.loss("mae", [1.0], [1.0]), lambda: nn.loss("mse", [1.0], ["a"]),
    lambda: nn.loss("mse", ["a"], [1.0]), lambda: nn.loss("mse", [], []),
    lambda: nn.loss("mse", [1.0], [np.nan]), lambda: nn.loss("bce_with_logits", [1.0], [-0.1]),
    lambda: nn.loss("cross_entropy", [[1.0, 2.0]], [2]),
    lambda: nn.loss("cross_entropy", [[1.0, 2.0]], [-1]),
    lambda: nn.loss("cross_entropy", [[1.0, 2.0]], [-100]),
    lambda: nn.loss("cross_entropy", [[1.0, 2.0]], [0.0]),
    lambda: nn.loss("cross_entropy", [[1.0, 2.0]], [0], ignore_index=1.5),
    lambda: nn.loss("cross_entropy", [[1.0, 2.0]], [0], ignore_index=10**30),
    lambda: nn.loss(np.ones(2), [1.0], [1.0]), lambda: nn.Attention(scale=10**400),
    lambda: linear(np.ones((1, 2)), x=[[1e300, 1.0]]),
    lambda: train.evaluate(MLP, nn.init(MLP), (X, T), loss="mse", batch=0),
    lambda: train.integer_fit(nn.Sequential(a=nn.Linear(2, 1, bias=False)), ([[1, 2]], [1]),
                              steps=1, batch=1, bits=4),
    lambda: train.integer_fit(nn.Sequential(a=nn.Linear(2, 1, bias=False)), ([[1, 2]], [1]),
                              steps=1, batch=1, fixed_point="no"),
    lambda: linear(np.ones((1, 2)), scaling=5), lambda: linear(np.ones((1, 2)), watch=5),
    lambda: nn.init(nn.LSTM(2, 1 << 70)), lambda: nn.Embedding(1 << 70, 2),
    lambda: train.classify(loss=np.ones(2), steps=1), lambda: train.classify(loss="l1", steps=1),
    lambda: train.classify(optimizer=np.ones(2), steps=1),
])  # fmt: skip
def test_bad_input_of_layers(bad):
    with pytest.raises(NumsimError) as caught:
        bad()
    assert "\n" not in str(caught.value)


def linear(weight, x=((1.0, 2.0),), up=((1.0,),), **how):
    for recipe in ("fp8_hybrid", None):
        _, tape = nn.forward(nn.Linear(2, 1, bias=False), {"weight": weight}, x,
                             recipe=recipe and train.recipe(recipe), **how)  # fmt: skip
        nn.backward(tape, up)

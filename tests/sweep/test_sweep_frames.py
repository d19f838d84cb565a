"""The tidy views of the rows of a sweep."""

import numsim as ns


def test_cases_and_products_are_two_tidy_frames():
    rows = ns.sweep(formats="int8", limit_tokens=63, window=64)
    assert len(rows.cases) == 2
    assert len(rows.cases) + len(rows.products) == len(rows)
    assert "K" not in rows.cases
    assert "perplexity" not in rows.products
    assert str(rows.products.op.dtype) == "category"
    assert rows.cases.kl_nats.notna().all()
    mean = rows.products.groupby("op", observed=True).sqnr_local_db.mean()
    assert mean.idxmin() == "down_proj"
    assert rows.products.emulated.sum() == 2 * 35
    assert rows.glossary.loc["kl_nats", "unit"] == "nats"
    assert set(rows.columns) == set(rows.glossary.index)
    assert type(rows[rows.layer == "all"]) is type(rows)  # a part has the views too

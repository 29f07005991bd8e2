"""What a table is, and where things lie in its rows."""

import json
import pickle
from hashlib import blake2b

import numpy as np
import pytest

from monolith_kv.errors import FormatVersionError
from monolith_kv.initializers import Constant, Normal, Uniform, Zeros
from monolith_kv.optimizers import SGD, Adagrad, Adam, Ftrl, Momentum, Optimizer
from monolith_kv.policies import FrequencyGate
from monolith_kv.schema import Slice, TableSchema, slices_of

PARTS = [Slice("bias", 1, Adam()), Slice("wide", 3, SGD()), Slice("vector", 8, Ftrl(), Zeros())]
NAMES = ["a", "A-b_c.9", "x" * 64, ".", "0"]
BAD_NAMES = ["", "x" * 65, "a b", "a/b", "ä", "a\n", "a\0"]


def schema(dim=8, **settings):
    return TableSchema("item", *slices_of(dim), **settings)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_tables_and_slices_are_accepted(name):
    assert Slice(name, 1).name == name
    assert TableSchema(name, *slices_of(1)).name == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_not_be_printed_or_stored_are_refused(name):
    with pytest.raises(ValueError, match=r"^slice name must be 1 to 64 of .*, got"):
        Slice(name, 1)
    with pytest.raises(ValueError, match=r"^table name must be 1 to 64 of .*, got"):
        TableSchema(name, *slices_of(1))


@pytest.mark.parametrize("name", [None, 7, b"item"])
def test_names_are_strings(name):
    with pytest.raises(TypeError, match="name must be a string"):
        Slice(name, 1)


@pytest.mark.parametrize("dim", [0, -1, 4097, 2**64])
def test_dims_out_of_range_are_refused(dim):
    with pytest.raises(ValueError, match=rf"^dim must be 1\.\.4096, got {dim}$"):
        Slice("a", dim)
    with pytest.raises(ValueError, match=rf"^dim must be 1\.\.4096, got {dim}$"):
        slices_of(dim)


@pytest.mark.parametrize("dim", [1.0, "8", True, None, b"8"])
def test_dims_are_whole_numbers(dim):
    with pytest.raises(TypeError, match="^dim must be an int or a sequence of Slice, got"):
        slices_of(dim)


def test_a_dim_of_numpy_becomes_an_int():
    assert type(Slice("a", np.int64(4)).dim) is int


@pytest.mark.parametrize("given", [None, Adam, "Adam", Optimizer])
def test_an_optimizer_is_an_instance_of_one(given):
    with pytest.raises(TypeError, match="^optimizer must be one such as Adagrad"):
        Slice("a", 1, given)


@pytest.mark.parametrize("given", [None, Zeros, 0.5])
def test_an_initializer_is_an_instance_of_one(given):
    with pytest.raises(TypeError, match="^initializer must be one such as Uniform"):
        Slice("a", 1, Adagrad(), given)


def test_a_table_without_slices_has_one_without_a_name():
    slices, named = slices_of(8, Adam(), Normal())
    assert not named
    assert [(part.name, part.dim) for part in slices] == [("", 8)]
    assert (slices[0].optimizer, slices[0].initializer) == (Adam(), Normal())


def test_defaults_are_adagrad_and_uniform():
    (part,), _ = slices_of(8)
    assert (part.optimizer, part.initializer) == (Adagrad(), Uniform())


@pytest.mark.parametrize("extra", [{"optimizer": SGD()}, {"initializer": Zeros()}])
def test_slices_bring_their_own_optimizer_and_initializer(extra):
    with pytest.raises(ValueError, match="must be left out beside slices"):
        slices_of(PARTS, **extra)


def test_a_sequence_holds_slices_only():
    with pytest.raises(TypeError, match="sequence of Slice, got 4 in it"):
        slices_of([Slice("a", 1), 4])


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([], "slices must be at least one"),
        ([Slice("a", 1), Slice("a", 2)], "slices must be at least one, of distinct names"),
        ([Slice("a", 4096), Slice("b", 1)], r"dim must be 1\.\.4096 over all slices, got 4097"),
    ],
)
def test_slices_are_distinct_and_not_too_wide(slices, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TableSchema("item", *slices_of(slices))


def test_a_schema_without_named_slices_has_one():
    with pytest.raises(ValueError, match="has one slice"):
        TableSchema("item", tuple(PARTS), False)


def test_admission_is_a_gate():
    with pytest.raises(TypeError, match="^admission must be a FrequencyGate or None, got int$"):
        schema(admission=3)


def test_state_lies_behind_one_another_in_the_order_of_slices():
    named = schema(PARTS)
    assert named.state_layout() == [
        ("bias.step", 0, 1),
        ("bias.m", 1, 1),
        ("bias.v", 2, 1),
        ("vector.z", 3, 8),
        ("vector.n", 11, 8),
    ]
    assert (named.dim, named.state_floats) == (12, 19)


def test_state_of_an_unnamed_slice_goes_by_its_own_name():
    table = TableSchema("item", *slices_of(4, Momentum()))
    assert table.state_layout() == [("momentum", 0, 4)]


def test_an_initializer_key_depends_on_seed_table_and_slice_alone():
    part = Slice("bias", 1, SGD(), Uniform(seed=5))
    expected = blake2b(b"item\0bias\0" + (5).to_bytes(8, "little")).digest()[:8]
    assert schema([part]).initializer_key(part) == int.from_bytes(expected, "little")
    others = [
        schema([part]).initializer_key(Slice("bias", 1, SGD(), Uniform(seed=6))),
        schema([part]).initializer_key(Slice("wide", 1, SGD(), Uniform(seed=5))),
        TableSchema("user", (part,), True).initializer_key(part),
    ]
    assert len({schema([part]).initializer_key(part), *others}) == 4


def test_the_data_plane_gets_numbers_only():
    part = Slice("bias", 1, SGD(0.5), Constant(2))
    table = schema([part])
    assert table.core_slices() == [(1, 0, (0.5,), 1, 2.0, 0.0, table.initializer_key(part))]


def test_kinds_are_names_dims_and_optimizer_classes():
    base = schema([Slice("a", 1, Adam()), Slice("b", 2)])
    assert base.same_kind(schema([Slice("a", 1, Adam(lr=1)), Slice("b", 2, Adagrad(), Zeros())]))
    assert not base.same_kind(schema([Slice("b", 2), Slice("a", 1, Adam())]))
    assert not base.same_kind(schema([Slice("a", 1, SGD()), Slice("b", 2)]))
    assert not base.same_kind(schema([Slice("a", 2, Adam()), Slice("b", 2)]))
    assert not schema(1).same_kind(schema([Slice("a", 1)]))


SCHEMAS = [
    schema(),
    schema(PARTS),
    schema(admission=FrequencyGate({7: 3, None: 2}), ttl_default=5, ttl_slots={7: 9}),
]


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_schema_survives_json_and_pickle(table):
    assert TableSchema.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert pickle.loads(pickle.dumps(table)) == table
    assert hash(pickle.loads(pickle.dumps(table))) == hash(table)


@pytest.mark.parametrize(
    "damage",
    [
        {"name": "a/b"},
        {"slices": []},
        {"slices": None},
        {"named": True},
        {"ttl_slots": {"x": 1}},
        {"ttl_slots": {"1": "x"}},
        {"ttl_slots": {"65536": 60}},
        {"ttl_slots": {"-1": 60}},
        {"ttl_default": "60"},
        {"ttl_default": True},
        {"ttl_default": 2**63},
        {"ttl_default": -1},
    ],
)
def test_an_unknown_schema_in_a_file_is_a_format_version_error(damage):
    with pytest.raises(FormatVersionError, match="^schema "):
        TableSchema.from_json({**schema().to_json(), **damage})


def test_a_schema_with_something_missing_is_a_format_version_error():
    for name in schema().to_json():
        data = schema().to_json()
        del data[name]
        with pytest.raises(FormatVersionError, match="^schema "):
            TableSchema.from_json(data)

"""What a config asks for: members, their names, and their own configs."""

import pytest

from dreamer import config as configs
from dreamer.config import ConfigError, load
from dreamer.config.population import SWEEPABLE, members, with_numbers


def test_a_population_of_one_is_the_run_itself():
    for overrides in ([], ["population=1"], ["population.lr=[0.5]"]):
        config = load([], ["logdir=runs/x", "optimizer.lr=0.5", *overrides])
        (member,) = members(config)
        assert member.name == "" and member.config.logdir == "runs/x"
        assert member.config == load([], ["logdir=runs/x", "optimizer.lr=0.5"])


def test_members_are_the_product_of_values_and_seeds():
    config = load(
        [], ["seed=2", "logdir=runs/x", "population=2", "population.lr=[1e-4, 3e-4]", "population.warmup=[5]"]
    )
    found = members(config)
    assert [member.name for member in found] == [
        f"lr_{lr}-warmup_5-seed_{seed}" for lr in (0.0001, 0.0003) for seed in (2, 3)
    ]
    for member in found:
        assert member.config.logdir == f"runs/x/{member.name}"
        assert member.numbers == {"optimizer.lr": member.config.optimizer.lr, "optimizer.warmup": 5}
        assert members(member.config)[0].config == member.config
        assert configs.from_dict(configs.to_dict(member.config)) == member.config
    assert [m.name for m in members(load([], ["population=3"]))] == ["seed_0", "seed_1", "seed_2"]


def test_overrides_can_be_written_in_full_or_in_short():
    short = load([], ["population=2", "population.lr=[1e-4,3e-4]", "population.entropy=[1,2]", "population.lr=[1]"])
    assert short.population.seeds == 2
    assert short.population.sweep == ("behavior.entropy=[1,2]", "optimizer.lr=[1]")
    assert load([], ["population.seeds=2", "population.sweep=['behavior.entropy=[1,2]', 'optimizer.lr=[1]']"]) == short
    assert load([], ["population=2", "population.behavior.entropy=[1,2]", "population.optimizer.lr=[1]"]) == short
    assert configs.from_dict(configs.to_dict(short)) == short


def test_keys_of_one_name_are_told_apart():
    overrides = ["population.loss.reward=[1, 2]", "population.sweep=['loss.reward=[1,2]', 'loss.cont=[3]']"]
    assert [m.name for m in members(load([], overrides))] == ["reward_1-cont_3-seed_0", "reward_2-cont_3-seed_0"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("population=many", "population.seeds is 'many', expected an integer, at least 1"),
        ("population=0", "population.seeds=0 cannot be used"),
        ("population.lrr=[1]", "'lrr' is the name of no key. Did you mean 'lr'?"),
        ("population.size=[1]", "'size' is short for env.size and env.dmc.size and env.atari.size and"),
        ("population.lr=3", "expected numbers as in 'optimizer.lr=[1e-4, 3e-4]'"),
        ("population.lr=[]", "expected numbers as in"),
        ("population.lr=[fast]", "expected numbers as in"),
        ("population.lr=[true]", "expected numbers as in"),
        ("population.lr=[1, 1.0]", "expected values that differ"),
        ("population.lr=[-1]", "optimizer.lr=-1.0 cannot be used: expected a finite number, above 0"),
        ("population.warmup=[0.5]", "optimizer.warmup is 0.5, expected an integer"),
        ("population.deter=[16, 32]", "rssm.deter shapes the program, which all members share"),
        ("population.horizon=[5, 15]", "behavior.horizon shapes the program"),
        ("population.free_nats=[0, 1]", "rssm.free_nats is part of the networks"),
        ("population.sweep=3", "expected numbers as in"),
        ("population.muon_rms=[0.1, 0.2]", "nothing reads optimizer.muon_rms with optimizer.kind=laprop"),
        ("population=10001", "population.seeds=10001 cannot be used"),
        (f"population.lr={[n / 1e6 for n in range(1, 10002)]}", "ask for 10,001 members, expected at most 10,000"),
        ("population.lr=[1" + "[" * 20_000, "expected numbers as in 'optimizer.lr=[1e-4, 3e-4]'"),
    ],
)
def test_what_cannot_be_a_population_is_refused(override, message):
    with pytest.raises(ConfigError) as caught:
        members(load([], [override]))
    assert message in str(caught.value)


def test_numbers_are_replaced_without_checks_and_without_changing_the_config():
    config = load()
    value = object()
    other = with_numbers(config, {"optimizer.lr": value, "loss.dyn": 2.0})
    assert other.optimizer.lr is value and other.loss.dyn == 2.0
    assert config == load() and other.behavior is config.behavior
    assert with_numbers(config, {}) is config


def test_only_numbers_of_the_update_can_be_swept():
    keys = dict(configs.flatten(load()))
    assert set(SWEEPABLE) <= keys.keys() and all(type(keys[key]) in (int, float) for key in SWEEPABLE)

"""Atari against the emulator played by hand: every field of every step, lives, limits, seeds and action sets."""

import dataclasses

import numpy as np
import pytest
from ale_py import ALEInterface, LoggerMode, roms
from PIL import Image

from dreamer import envs
from dreamer.config import AtariConfig, EnvConfig
from dreamer.envs import EnvError
from dreamer.envs.suites.atari import Atari

CALM = AtariConfig(noops=0)
FIRE = 1  # starts the ball in Breakout, whose needed actions are no-op, fire, right and left


class ByHand:
    """The emulator, and every frame of the current game, newest last."""

    def __init__(self, game, seed=0, sticky=0.0, gray=False):
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self.ale = ALEInterface()
        self.ale.setInt("random_seed", seed)
        self.ale.setFloat("repeat_action_probability", sticky)
        self.ale.loadROM(str(roms.get_rom_path(game)))
        self.screen = self.ale.getScreenGrayscale if gray else self.ale.getScreenRGB

    def start(self, noops=0):
        self.ale.reset_game()
        self.frames = [self.screen()]
        for _ in range(noops):
            self.act(0)

    def act(self, action):
        reward = self.ale.act(action)
        self.frames.append(self.screen())
        return reward

    def observe(self, height, width):
        both = np.maximum(self.frames[-1], self.frames[max(-2, -len(self.frames))])
        image = np.asarray(Image.fromarray(both).resize((width, height), Image.Resampling.BILINEAR))
        return image.reshape(height, width, -1)


def random_actions(count, actions, seed=0):
    """Random actions; mostly fire, so that balls are served and lost."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 0.5, FIRE, rng.integers(0, actions, count)).tolist()


def until_the_end(env, action=FIRE):
    """Repeat an action; the steps of one episode."""
    steps = [env.step(action)]
    while not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(action))
    return steps


@pytest.mark.parametrize(
    ("repeat", "options"),
    [
        (4, {}),
        (4, {"sticky": 0.25, "size": (96, 96), "gray": True, "actions": "all"}),
        (1, {"size": (48, 80), "noops": 2}),
        (3, {"lives": "terminal", "sticky": 0.1}),
        (3, {"lives": "reset", "noops": 5}),
        (4, {"max_frames": 130, "gray": True}),
        (4, {"max_frames": 130, "lives": "terminal"}),
    ],
    ids=["100k", "200M", "no_repeat", "terminal", "reset", "limit", "limit_and_terminal"],
)
def test_same_as_the_emulator_played_by_hand(repeat, options):
    config = AtariConfig(**options)
    env = Atari("breakout", config, repeat)
    obs, _ = env.reset(seed=5)
    raw = ByHand("breakout", env.ale.getInt("random_seed"), config.sticky, config.gray)
    codes = list(range(18)) if config.actions == "all" else [0, 1, 3, 4]
    new_game, ends = True, 0
    for action in [None, *random_actions(700 // repeat, len(codes))]:
        if new_game:
            noops = env.ale.getEpisodeFrameNumber()
            assert noops <= config.noops
            raw.start(noops)
            new_game = False
        np.testing.assert_array_equal(obs, raw.observe(*config.size), strict=True)
        if action is None:
            continue
        obs, *answer = env.step(action)
        total, taken, lives = 0, 0, raw.ale.lives()
        for _ in range(repeat):
            total += raw.act(codes[action])
            taken += 1
            terminated = raw.ale.game_over()
            if config.lives != "ignore":
                terminated = terminated or raw.ale.lives() < lives
            limit = raw.ale.getEpisodeFrameNumber() - noops == config.max_frames
            if terminated or limit:
                break
        assert answer == [total, terminated, limit and not terminated, {"env_steps": taken}]
        np.testing.assert_array_equal(obs, raw.observe(*config.size), strict=True)
        if terminated or limit:
            ends += 1
            new_game = limit or config.lives != "terminal" or raw.ale.game_over()
            obs, _ = env.reset()
    assert ends >= 1
    assert env.ale.getEpisodeFrameNumber() == raw.ale.getEpisodeFrameNumber()


def test_the_first_frame_of_a_game_stands_alone():
    env = Atari("freeway", dataclasses.replace(CALM, max_frames=40))
    first, _ = env.reset(seed=0)
    raw = ByHand("freeway")
    raw.start()
    np.testing.assert_array_equal(first, raw.observe(64, 64))
    until_the_end(env)
    np.testing.assert_array_equal(env.reset()[0], first)  # nothing of the game before


def test_noops_are_frames_of_the_game_that_do_not_count():
    config = AtariConfig(noops=3, max_frames=2)
    env = Atari("freeway", config)
    raw = ByHand("freeway")
    counts = set()
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(8):
            noops = env.ale.getEpisodeFrameNumber()
            counts.add(noops)
            raw.start(noops)
            np.testing.assert_array_equal(env.step(0)[0], (raw.act(0), raw.observe(64, 64))[1])
            _, _, terminated, truncated, _ = env.step(0)
            assert (terminated, truncated) == (False, True)
            obs, _ = env.reset()
    assert counts == {0, 1, 2, 3}
    raw.start(env.ale.getEpisodeFrameNumber())
    np.testing.assert_array_equal(obs, raw.observe(64, 64))


def test_a_game_that_noops_lose_restarts():
    env = Atari("assault", AtariConfig(noops=2000))  # over after 642 frames without a defence
    for seed in range(3):
        env.reset(seed=seed)
        assert not env.ale.game_over() and env.ale.getEpisodeFrameNumber() < 642


def test_a_step_stops_where_the_episode_does():
    env = Atari("breakout", dataclasses.replace(CALM, max_frames=10), repeat=4)
    env.reset(seed=0)
    steps = [step[2:] for step in until_the_end(env)]
    assert steps == [
        (False, False, {"env_steps": 4}),
        (False, False, {"env_steps": 4}),
        (False, True, {"env_steps": 2}),
    ]


def test_ignored_lives_end_nothing():
    env = Atari("breakout", CALM)
    env.reset(seed=0)
    steps = until_the_end(env)
    assert steps[-1][2:4] == (True, False)
    assert env.ale.lives() == 0
    assert env.ale.game_over()


def test_terminal_lives_continue_the_game():
    whole, lives = Atari("breakout", CALM), Atari("breakout", dataclasses.replace(CALM, lives="terminal"))
    whole.reset(seed=0)
    expected = until_the_end(whole)
    obs, _ = lives.reset(seed=0)
    played = []
    for left in (4, 3, 2, 1, 0):
        steps = until_the_end(lives)
        assert steps[-1][2:4] == (True, False) and lives.ale.lives() == left
        played += steps
        obs, _ = lives.reset()
        if left:
            np.testing.assert_array_equal(obs, steps[-1][0])
    assert lives.ale.lives() == 5 and lives.ale.getEpisodeFrameNumber() == 0
    assert [step[1] for step in played] == [step[1] for step in expected]
    np.testing.assert_array_equal([step[0] for step in played], [step[0] for step in expected])


def test_a_seed_starts_a_new_game_even_after_a_lost_life():
    env = Atari("breakout", dataclasses.replace(CALM, lives="terminal"))
    first, _ = env.reset(seed=0)
    env.step(FIRE)
    moved = until_the_end(env, action=2)[-1][0]
    assert (moved != first).any()
    np.testing.assert_array_equal(env.reset(seed=0)[0], first)
    assert env.ale.lives() == 5


def test_resetting_lives_restart_the_game():
    env = Atari("breakout", dataclasses.replace(CALM, lives="reset"))
    first, _ = env.reset(seed=0)
    assert until_the_end(env)[-1][2:4] == (True, False) and env.ale.lives() == 4
    np.testing.assert_array_equal(env.reset()[0], first)
    assert env.ale.lives() == 5


def test_a_life_lost_in_the_last_frame_is_terminal_and_the_game_is_over():
    env = Atari("breakout", dataclasses.replace(CALM, lives="terminal"))
    env.reset(seed=0)
    last = len(until_the_end(env))
    env = Atari("breakout", dataclasses.replace(CALM, lives="terminal", max_frames=last))
    env.reset(seed=0)
    assert until_the_end(env)[-1][2:4] == (True, False) and env.ale.lives() == 4
    env.reset()
    assert env.ale.lives() == 5


def test_seeds_decide_everything():
    config = AtariConfig(sticky=0.5)

    def play(env, seed):
        found = [env.reset(seed=seed)[0], *(env.step(action)[0] for action in random_actions(60, 4))]
        return np.array([*found, env.reset()[0]]), env.ale.getEpisodeFrameNumber()

    env = Atari("breakout", config, repeat=2)
    images, noops = play(env, 1)
    for again in (env, Atari("breakout", config, repeat=2)):
        same, count = play(again, 1)
        np.testing.assert_array_equal(images, same)
        assert count == noops
    assert (images != play(env, 2)[0]).any()
    one, two = Atari("breakout", config), Atari("breakout", config)
    assert one.ale.getInt("random_seed") != two.ale.getInt("random_seed")


def test_through_the_adapter():
    config = EnvConfig(repeat=4, clip_reward=1.0, atari=AtariConfig(actions="all"))
    env = envs.make("atari_ms_pacman", config, render=True)
    obs, info = env.reset(seed=0)
    assert env.obs_spaces["image"].shape == obs["image"].shape == (64, 64, 3) and info["env_steps"] == 0
    assert env.action_spaces["action"].classes == 18
    _, reward, _, _, info = env.step({"action": np.int32(17)})
    assert info["env_steps"] == 4 and -1 <= reward <= 1
    np.testing.assert_array_equal(env.render(), env.unwrapped.ale.getScreenRGB())  # type: ignore[attr-defined]
    assert env.render().shape == (210, 160, 3)


def test_games_by_name():
    names = [name for name in envs.tasks() if name.startswith("atari_")]
    assert {"atari_pong", "atari_ms_pacman", "atari_montezuma_revenge"} < set(names) and len(names) == 104
    with pytest.raises(EnvError, match=r"no game 'breakot' for one player\. Did you mean 'atari_breakout'"):
        envs.make("atari_breakot", EnvConfig())
    with pytest.raises(EnvError, match="no game 'combat' for one player"):
        envs.make("atari_combat", EnvConfig())


def test_the_emulator_keeps_quiet(capfd):
    ALEInterface.setLoggerMode(LoggerMode.Info)
    Atari("pong", CALM).reset(seed=0)
    assert capfd.readouterr() == ("", "")

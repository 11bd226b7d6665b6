"""Atari 2600 games, from the Arcade Learning Environment (ALE) without any wrappers."""

from typing import Any

import gymnasium
import numpy as np
from ale_py import Action, ALEInterface, ALEState, LoggerMode, roms
from gymnasium import spaces
from PIL import Image

from dreamer.config import AtariConfig, EnvConfig
from dreamer.envs.errors import NotRestorable, UnknownTask

_TWO_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}
"""Games that need a second player; ALE kills the whole process when it loads one of them for a single player."""


def tasks() -> list[str]:
    """Names of all games, for example ``ms_pacman``."""
    return sorted(set(roms.get_all_rom_ids()) - _TWO_PLAYERS)


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """Make a game by name; raises `UnknownTask`."""
    if name not in tasks():
        raise UnknownTask(f"Atari has no game '{name}' for one player.")
    return Atari(name, config.game, config.repeat, render_mode)


class Atari(gymnasium.Env):
    """One game, under the protocols of Machado et al. 2018 (sticky actions) and of the 100k benchmark.

    Observation: uint8 ``[H, W, 3]``, or ``[H, W, 1]`` for gray. Games draw some objects only in every other frame, so
    it is the pixelwise maximum of the emulator's last two frames, whatever the repeat, resized with Pillow's bilinear
    filter. The first frame of a game stands alone.

    Every action is applied for ``repeat`` frames, or until the episode ends. An episode terminates when the game is
    over, and is truncated after ``max_frames`` frames of the game. Unless ``lives`` is ``ignore``, losing a life
    terminates it too; with ``terminal``, the next episode continues the game: it begins with the last observation of
    the one before, and the frames of both count towards ``max_frames``. No-ops at the start do not count.

    A seed decides everything, including sticky actions and the number of no-ops.

    Args:
        game: name in lower case with underscores.
        config: size, colour, stickiness, no-ops, action set, lives and frame limit.
        repeat: frames for which each action is applied.
        render_mode: "rgb_array" for raw frames, uint8 ``[210, 160, 3]`` in most games.

    Attributes:
        ale: the emulator.
    """

    needs_rehearsal = True
    """In a few games, such as Q*bert and Tetris, ALE's saved state leaves out something that matters."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, game: str, config: AtariConfig, repeat: int = 1, render_mode: str | None = None) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)  # before the constructor, which prints a banner
        self.ale = ALEInterface()
        self.ale.setFloat("repeat_action_probability", config.sticky)
        self.action_repeat = repeat
        self.render_mode = render_mode
        self._config = config
        self._rom = str(roms.get_rom_path(game))
        self._load()
        self._actions = self.ale.getMinimalActionSet() if config.actions == "needed" else self.ale.getLegalActionSet()
        channels = 1 if config.gray else 3
        self.action_space = spaces.Discrete(len(self._actions))
        self.observation_space = spaces.Box(0, 255, (*config.size, channels), np.uint8)
        self._capture = self.ale.getScreenGrayscale if config.gray else self.ale.getScreenRGB
        screen = self._capture()
        self._screens = [screen, screen.copy()]  # the last two, the latest one last
        self._frames = 0
        self._continues = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self._load()
        if seed is not None or not self._continues:
            self._new_game()
        self._continues = False
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        lives = self.ale.lives()
        reward = 0.0
        taken = 0
        while True:
            reward += self.ale.act(self._actions[action])
            self._look()
            taken += 1
            self._frames += 1
            over = self.ale.game_over()
            lost = self._config.lives != "ignore" and self.ale.lives() < lives
            limit = self._frames >= self._config.max_frames
            if over or lost or limit or taken == self.action_repeat:
                break
        self._continues = self._config.lives == "terminal" and lost and not (over or limit)
        terminated = over or lost
        return self._observe(), reward, terminated, limit and not terminated, {"env_steps": taken}

    def get_state(self) -> dict[str, Any]:
        """The console with its random state, and everything here that outlives a step."""
        return {
            "ale": self.ale.cloneSystemState().serialize(),
            "random": self.np_random.bit_generator.state,
            "screens": [screen.copy() for screen in self._screens],
            "frames": self._frames,
            "continues": self._continues,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same game; raises `NotRestorable` if ALE does not restore all of it."""
        self.ale.restoreSystemState(ALEState(state["ale"]))
        if self.ale.cloneSystemState().serialize() != state["ale"]:
            raise NotRestorable("The Arcade Learning Environment restores only part of this game's state.")
        self.np_random.bit_generator.state = state["random"]
        for screen, saved in zip(self._screens, state["screens"], strict=True):
            screen[:] = saved
        self._frames = state["frames"]
        self._continues = state["continues"]

    def render(self) -> np.ndarray:
        """The emulator's screen as RGB, neither pooled nor resized."""
        return self.ale.getScreenRGB()

    def _load(self) -> None:
        # ALE reads its seed only while it loads a game.
        self.ale.setInt("random_seed", int(self.np_random.integers(2**31)))
        self.ale.loadROM(self._rom)

    def _new_game(self) -> None:
        self._power_on()
        for _ in range(self.np_random.integers(self._config.noops + 1)):
            self.ale.act(Action.NOOP)
            self._look()
            if self.ale.game_over():
                self._power_on()
        self._frames = 0

    def _power_on(self) -> None:
        self.ale.reset_game()
        self._screens[-1][:] = 0  # the last game must not shine through
        self._look()

    def _look(self) -> None:
        self._screens.reverse()
        self._capture(self._screens[-1])

    def _observe(self) -> np.ndarray:
        height, width = self._config.size
        image = Image.fromarray(np.maximum(*self._screens)).resize((width, height), Image.Resampling.BILINEAR)
        return np.array(image).reshape(self.observation_space.shape)


__all__ = ["Atari", "make", "tasks"]

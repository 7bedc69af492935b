"""A window that shows frames, by pygame, which is not among the dependencies."""

from __future__ import annotations

from typing import Any

import numpy as np

from roboalign_ray.foundation.failures import UserError

_SIDE = 384  # pixels that the shorter side of a window has at least


class FrameWindow:
    """Opened by the first frame.

    Raises:
        UserError: pygame is not installed.
    """

    def __init__(self) -> None:
        try:
            import pygame
        except ImportError:
            raise UserError(
                "a window needs pygame",
                where="render_mode='human'",
                remedy="install it, or use render_mode='rgb_array'",
            ) from None
        self._pygame: Any = pygame
        self._screen: Any = None
        self._clock = pygame.time.Clock()

    def show(self, frame: np.ndarray, fps: float) -> None:
        """Show a frame, uint8 [H, W, 3], enlarged, no sooner than 1 / fps seconds behind the last one."""
        pygame = self._pygame
        scale = max(1, -(-_SIDE // min(frame.shape[:2])))
        size = frame.shape[1] * scale, frame.shape[0] * scale
        if self._screen is None:
            pygame.display.init()
            pygame.display.set_caption("RoboAlign world model")
            self._screen = pygame.display.set_mode(size)
        picture = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._screen.blit(pygame.transform.scale(picture, size), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(fps)

    def close(self) -> None:
        """Close it; a further frame opens it again."""
        if self._screen is not None:
            self._pygame.display.quit()
            self._screen = None

"""What the agents of a job are made of: simulators, world model, costs and planner; opened when a row first needs them.

Everything that a row needs is checked from names and headers before anything is simulated.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property, lru_cache

import torch

from roboalign_ray.config import JobConfig, RewardConfig
from roboalign_ray.episodes.sources.metaworld_simulator import MetaworldSimulator
from roboalign_ray.episodes.sources.metaworld_tasks import check_task
from roboalign_ray.episodes.sources.opengl import require_simulator
from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.judge.student.model import Student
from roboalign_ray.pipelines.cluster.weight_folders import (
    student_folder,
    tokenizer_folder,
    world_model_folder,
)
from roboalign_ray.planning.closed_loop.agents import (
    Agent,
    Expert,
    HeldExpert,
    Idle,
    PlanningAgent,
    RandomSmooth,
)
from roboalign_ray.planning.closed_loop.dynamics import (
    Dynamics,
    ModelDynamics,
    SimulatorDynamics,
    Terms,
    privileged_term,
)
from roboalign_ray.planning.closed_loop.episode import goal_picture
from roboalign_ray.planning.closed_loop.scene import action_limits, simulation_of
from roboalign_ray.planning.closed_loop.table import EXPERT, HELD, NOTHING, RANDOM, ROWS, CostName
from roboalign_ray.planning.costs import RewardTerm, Term
from roboalign_ray.planning.progress.network import ProgressNetwork
from roboalign_ray.planning.progress.term import ProgressTerm
from roboalign_ray.planning.registry import open_planner
from roboalign_ray.planning.scoring import ClipScorer
from roboalign_ray.rewards.registry import build_reward
from roboalign_ray.world_model.protocol import WorldModel
from roboalign_ray.world_model.refresh import check_clips
from roboalign_ray.world_model.registry import check_world_model, open_world_model


class AgentParts:
    """Makes the agents of a job.

    Args:
        config: `agent`, world model, student and simulator.

    Attributes:
        card: of the world model.
        simulation: settings of the simulator that give its frames and rate.

    Raises:
        UserError: there is no such world model, it is not one of Meta-World, or the planner's settings are wrong.
    """

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self._folder, self._tokenizer = world_model_folder(config), tokenizer_folder(config)
        self.card = check_world_model(self._folder, tokenizer=self._tokenizer)
        check_clips(config.agent.horizon, self.card, "agent.horizon")
        self.simulation = simulation_of(self.card, config.simulation)
        self._planner = open_planner(config.agent.planner, config.agent.search.model_dump())
        self.simulator = lru_cache(1)(lambda task: MetaworldSimulator(task, self.simulation))
        self._goal = lru_cache(1)(
            lambda task, start: goal_picture(self.simulator(task), start, config.agent.decisions)
        )

    def check(self, rows: Collection[str], tasks: Collection[str]) -> None:
        """Check that agents of these rows and tasks can be made.

        Raises:
            UserError: an unknown row or task, or a part that a row needs is missing or of another card.
        """
        for task in tasks:
            check_task(task)
        for name in rows:
            if name not in ROWS:
                raise UserError(f"no row '{name}'", where="--row", remedy=nearest_key(name, list(ROWS)))
        require_simulator()
        costs = {ROWS[name].cost for name in rows}
        if "progress" in costs:
            for task in tasks:
                ProgressTerm(self._network, task, self.card)
        if "student" in costs:
            student_folder(self.config)

    def agent(self, row: str, task: str, start: int) -> Agent:
        """The agent of a row, for one episode."""
        limits = action_limits(self.simulation)
        alone: dict[str, Agent] = {
            NOTHING: Idle(),
            RANDOM: RandomSmooth(limits[1], task, start),
            EXPERT: Expert(),
            HELD: HeldExpert(),
        }
        if row in alone:
            return alone[row]
        simulator, terms = self.simulator(task), self._terms(ROWS[row].cost, task, start)
        truth = SimulatorDynamics(simulator, terms)
        dynamics: Dynamics = truth if ROWS[row].dynamics == "simulator" else self._in_the_model(terms)
        return PlanningAgent(self._planner, dynamics, truth, limits, self.config.agent, self.config.seed)

    def _in_the_model(self, terms: Terms) -> ModelDynamics:
        agent = self.config.agent
        return ModelDynamics(self._model, terms, history=agent.history, samples=agent.samples)

    def _terms(self, cost: CostName | None, task: str, start: int) -> Terms:
        if cost == "privileged":
            term: Term = privileged_term
        elif cost == "progress":
            term = ProgressTerm(self._network, task, self.card)
        elif cost == "goal":
            pixels = self.config.reward.fidelity.model_copy(update={"weight": 1.0})
            reward = build_reward(RewardConfig(fidelity=pixels), None, self._device)
            term = RewardTerm(ClipScorer(reward, self.card, self._goal(task, start)), last=True)
        else:
            term = RewardTerm(self._judge)
        return {str(cost): (term, 1.0)}

    @property
    def _device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _model(self) -> WorldModel:
        return open_world_model(self._folder, self.config.rollout, tokenizer=self._tokenizer)

    @cached_property
    def _network(self) -> ProgressNetwork:
        if (folder := self.config.agent.progress_weights) is None:
            raise UserError(
                "the learned cost is not set",
                where="agent.progress_weights",
                remedy="train one: roboalign agent train-cost",
            )
        return ProgressNetwork.load(folder).to(self._device)

    @cached_property
    def _judge(self) -> ClipScorer:
        judged = self.config.reward.judged.model_copy(update={"weight": 1.0})
        student = Student.load(student_folder(self.config))
        reward = build_reward(RewardConfig(judged=judged), student, self._device)
        return ClipScorer(reward, self.card)

"""RobotWorldBench: labelled videos, made by rules from real episodes, rollouts and simulated counterfactuals."""

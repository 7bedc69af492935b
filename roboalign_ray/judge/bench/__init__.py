"""RobotWorldBench: labelled videos made by rule from real episodes, rollouts and simulated counterfactuals."""

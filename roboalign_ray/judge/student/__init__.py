"""The student judge: model, training, calibration, registry."""

"""Jobs that measure world models and judges: protocols, judge panels, the demo, the reproductions."""

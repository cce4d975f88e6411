"""Adversarial training, attacks, and the robustness gate."""

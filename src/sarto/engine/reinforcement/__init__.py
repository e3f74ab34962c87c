"""Reinforcement tuning's answers: sampled by the serving engine from the weights in training, scored, and stored."""

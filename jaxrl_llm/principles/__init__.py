"""From what annotators write to principles that a response keeps or not (RLBFF)."""

"""Learn policies from boots that an operator trusts."""

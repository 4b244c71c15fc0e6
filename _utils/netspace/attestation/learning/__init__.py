"""Learn policies from boots that an operator holds good."""

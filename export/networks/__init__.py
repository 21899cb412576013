"""Networks: the registry, the tutorial networks, ResNet-18, the speed net."""

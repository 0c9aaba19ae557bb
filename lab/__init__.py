"""A small real world for the demo and the tests: real virtual machines, some with a real (tiny) Linux inside."""

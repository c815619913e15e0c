"""Serving: the engine with its scheduler and replica, and the pure logic they run. `starting` finds or starts one."""

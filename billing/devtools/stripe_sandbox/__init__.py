"""A local Stripe for tests, the demo and laptops, written against Stripe's public description."""

from billing.devtools.stripe_sandbox.app import create_app
from billing.devtools.stripe_sandbox.sandbox import Sandbox
from billing.devtools.stripe_sandbox.server import SandboxServer, main

__all__ = ["Sandbox", "SandboxServer", "create_app", "main"]

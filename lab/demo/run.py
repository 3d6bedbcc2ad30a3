"""The demo, stage by stage: servers, catalogue, processes, tasks, checks, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from billing.container import Container
from billing.devtools.embedded_servers import LocalServers
from billing.devtools.embedded_servers.process import interrupts_deferred
from billing.postgres import migrations
from billing.settings import Settings
from lab.demo import programs
from lab.demo.bars import Bars
from lab.demo.books import read_books
from lab.demo.catalogue import add_customer, add_sku
from lab.demo.checks import Check, Evidence, as_planned, invariants
from lab.demo.children import Children
from lab.demo.ground import Ground
from lab.demo.hosts import DifficultHost, ForwardProxy
from lab.demo.interrupts import Interrupts
from lab.demo.pages import LIGHT_PAGES
from lab.demo.report import (
    print_checklist,
    print_delivery,
    print_overview,
    print_receipts,
)
from lab.demo.reported import Delivery, report_usage
from lab.demo.scenario import CUSTOMERS, SKUS, Places, batches
from lab.demo.stages import Stages
from lab.demo.summary import Summary, summarise
from lab.demo.till import Till
from lab.demo.visits import closed_port, count_visits
from lab.demo.work import Work
from workers.app import make_app

CONCURRENCY: Final = 3
"""Processes of the worker's pool: on two cores, one waits for the network while two work."""
PROXY_COST_MICROS: Final = 4_000
"""What a request through the demo's proxy is said to cost: 0.004 of the currency."""
SUMMARY: Final = "summary.json"


@dataclass(frozen=True, slots=True)
class Hosts:
    """The demo's small servers and where the pages are."""

    difficult: DifficultHost
    proxy: ForwardProxy
    places: Places


@dataclass(slots=True)
class Demo:
    """One run.

    Args:
        console: Where it prints.
        folder: Its own; logs, data and the summary are there afterwards.
        given: What the environment says.
        interrupts: Asked, wherever it waits, whether it is to end.
        make_servers: Makes what starts the servers that are not given.

    ``denied_task`` is the id of one that was denied, once the tasks are done.
    """

    console: Console
    folder: Path
    given: Settings
    interrupts: Interrupts
    make_servers: Callable[..., LocalServers] = LocalServers
    stages: Stages = field(init=False)
    children: Children = field(init=False)
    ground: Ground = field(init=False)
    till: Till = field(init=False)
    container: Container = field(init=False)
    denied_task: str | None = None
    _result_keys: list[str] = field(default_factory=list)
    _cleanup: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.stages = Stages(self.console)
        self.children = Children(self.folder, self.interrupts.check)

    def run(self) -> bool:
        """Run it and stop everything it started, whatever happens.

        Returns:
            Whether every invariant holds and everything went as planned.

        Raises:
            WeighbridgeError: It cannot go on.
        """
        try:
            self._start_servers()
            self._fill_catalogue()
            hosts = self._start_processes()
            evidence = self._do_the_work(hosts)
            delivery = self._report_usage()
            return self._report(replace(evidence, reported=delivery.rows), delivery)
        finally:
            self._stop()

    # -- stages ----------------------------------------------------------------------------------

    def _start_servers(self) -> None:
        with self.stages.stage("Servers") as stage:
            servers = self.make_servers(self.folder, say=stage.show)
            self.ground = Ground(self.folder, self.given, servers)
            self._cleanup.callback(self.ground.stop)
            endpoints = self.ground.start()
            stage.outcome = self.ground.told()
        for note in endpoints.notes:
            self.stages.note(note)
        self.till = Till(self.given)
        self.till.start()
        self._cleanup.callback(self.till.stop)
        # This process and those it starts are told the same.
        os.environ.update(self.ground.environment() | self.till.environment())
        self.container = Container(Settings())
        self._cleanup.callback(self._clear_away)

    def _fill_catalogue(self) -> None:
        with self.stages.stage("Catalogue") as stage:
            stage.show("migrating the schema")
            migrations.upgrade(self.container.endpoints.database_url)
            for sku in SKUS:
                add_sku(self.container, sku)
            for customer in CUSTOMERS:
                add_customer(self.container, customer)
            stage.outcome = f"schema migrated, {len(SKUS)} SKUs, {len(CUSTOMERS)} customers"

    def _start_processes(self) -> Hosts:
        with self.stages.stage("Processes") as stage:
            site = programs.site(self.folder)
            self._cleanup.callback(self.children.stop)
            self.children.start(site, {})
            proxy = self._cleanup.enter_context(ForwardProxy())
            programs_ = [
                programs.consumer(),
                programs.worker(self.ground.node_name, CONCURRENCY),
                programs.beat(self.folder),
            ]
            environment = {
                "WEIGHBRIDGE_FETCH_ALLOW_NETWORKS": "127.0.0.0/8",
                "WEIGHBRIDGE_FETCH_PORTS": "*",
                "WEIGHBRIDGE_PROXY_URL": proxy.url,
                "WEIGHBRIDGE_PROXY_COST_MICROS": str(PROXY_COST_MICROS),
            }
            for program in programs_:
                stage.show(f"starting the {program.name}")
                self.children.start(program, environment)
            self.children.wait_ready(site, *programs_)
            site_url = (self.folder / programs.SITE_URL).read_text().rstrip("/")
            difficult = self._cleanup.enter_context(
                DifficultHost(lambda name: f"{site_url}/{LIGHT_PAGES[int(name)]}.html")
            )
            nowhere = self._cleanup.enter_context(closed_port())
            stage.outcome = f"worker ({CONCURRENCY} processes, with relay), consumer, beat, site"
        places = Places(site=site_url, difficult=difficult.url, nowhere=nowhere)
        return Hosts(difficult, proxy, places)

    def _do_the_work(self, hosts: Hosts) -> Evidence:
        app = make_app(self.container.settings)
        self._cleanup.callback(_let_go, app)
        app.loader.import_default_modules()
        app.loader.import_task_module("lab.demo.tasks")
        planned = batches(hosts.places)
        began, started = self.stages.elapsed_seconds, self.container.clock.now()
        with Bars(self.console, CUSTOMERS) as bars:
            work = Work(app, self.container, self.children, bars)
            try:
                work.run(planned)
            finally:
                self._result_keys = work.results.keys()
        seconds = self.stages.elapsed_seconds - began
        tickets = work.results.tickets
        self.stages.done(
            "Tasks", f"{len(tickets):,} tasks, {len(tickets) / seconds:.0f} a second", seconds
        )
        with self.stages.stage("Books") as stage:
            evidence = Evidence(
                plans=CUSTOMERS,
                tickets=tickets,
                ends=work.results.ends,
                by_customer=work.results.by_customer(),
                broken_chords=work.results.broken_chords(),
                books=read_books(self.container, [plan.id for plan in CUSTOMERS]),
                discrepancies=self.container.invariant_checks.run(started),
                visits=count_visits(
                    site_url=hosts.places.site,
                    site_log=self.folder / programs.SITE_LOG,
                    difficult_url=hosts.difficult.url,
                    difficult=hosts.difficult.asked(),
                    proxy=hosts.proxy.asked(),
                ),
            )
            stage.outcome = "Redis, log, rollups and the servers' own records read and compared"
        return evidence

    def _report_usage(self) -> Delivery:
        with self.stages.stage("Reports") as stage:
            delivery = report_usage(self.container, stage.show)
            stage.outcome = (
                f"{delivery.requests:,} figures to {self.till.told()}, every one read back"
            )
        return delivery

    def _report(self, evidence: Evidence, delivery: Delivery) -> bool:
        settings, books = self.container.settings, evidence.books
        denied = (task for task, end in evidence.ends.items() if end.outcome == "denied")
        self.denied_task = next(denied, None)
        print_receipts(self.console, CUSTOMERS, books, currency=settings.currency)
        print_overview(
            self.console,
            CUSTOMERS,
            books,
            credit_value=settings.credit_value,
            currency=settings.currency,
        )
        print_delivery(self.console, delivery, self.till.told())
        found, plan = invariants(evidence), as_planned(evidence)
        print_checklist(self.console, [*found, plan], self.stages.tick)
        summary = summarise(evidence, found)
        (self.folder / SUMMARY).write_text(summary.to_json(), "utf-8")
        self.console.print(f"\n{_verdict(summary, plan)}\n")
        return summary.discrepancies == 0 and plan.holds

    def _stop(self) -> None:
        with self.stages.stage("Stopped") as stage:
            stage.show("stopping everything that was started")
            # A second Ctrl-C waits until nothing is left running.
            with interrupts_deferred():
                self._cleanup.close()
            stage.outcome = "every process and server that was started"

    def _clear_away(self) -> None:
        settings = self.container.settings
        self.container.close()
        for left in self.ground.clear_away(settings, self._result_keys):
            self.stages.note(f"Could not be deleted: {left}")


def _let_go(app: Any) -> None:
    """Close the app's connections while their servers still run.

    Results subscribe to their task's channel and unsubscribe when they are deleted, which may be
    after the servers were stopped: by then there must be nothing left to unsubscribe from.
    """
    consumer = app.backend.result_consumer
    consumer.stop()
    consumer.subscribed_to.clear()
    app.close()


def _verdict(summary: Summary, plan: Check) -> str:
    as_it_should = "as planned" if plan.holds else "NOT as planned"
    return (
        f"{summary.tasks_submitted:,} tasks, {summary.events_logged:,} lines in the log, "
        f"discrepancies: {summary.discrepancies}; everything went {as_it_should}."
    )

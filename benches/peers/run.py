"""Compare stepping rates of scorefield and OpenMM on one core, interleaved.

    SCOREFIELD_PEERS=VENV python3 benches/peers/run.py --json results.json

Every repeat measures each contender once, one after the other on the same
CPU, and every second repeat goes through them backwards, so that a slow drift
of the machine touches all of them alike.  A ratio is formed within a repeat
and the table shows the median of the ratios with their range.

OpenMM advances one system; scorefield advances R replicas of it in one
process, and its rate counts the steps of all replicas.  Both rates are those
of the stepping loop alone, without start-up, reading and writing.

Only the standard library is needed here; OpenMM runs in the environment that
SCOREFIELD_PEERS (or --peers) names.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
INPUT = ROOT / "data" / "alanine-dipeptide"


class BenchmarkError(Exception):
    """Something is missing or did not do what it was asked to do."""


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pdb", type=Path, default=INPUT / "alanine-dipeptide.pdb")
    parser.add_argument("--xml", type=Path, default=INPUT / "alanine-dipeptide-obc.xml")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "scorefield")
    parser.add_argument(
        "--peers",
        type=Path,
        default=os.environ.get("SCOREFIELD_PEERS"),
        help="virtual environment with OpenMM [$SCOREFIELD_PEERS]",
    )
    parser.add_argument(
        "--platforms", nargs="+", choices=("Reference", "CPU"), default=["Reference", "CPU"]
    )
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 16, 64, 128])
    parser.add_argument("--dtype", nargs="+", choices=("f32", "f64"), default=["f32", "f64"])
    parser.add_argument(
        "--steps",
        type=int,
        default=20000,
        help="steps of OpenMM, and of all replicas of scorefield together, per measurement",
    )
    parser.add_argument(
        "--min-steps", type=int, default=500, help="least number of steps of each replica"
    )
    parser.add_argument("--dt-fs", type=float, default=2.0)
    parser.add_argument("--friction", type=float, default=1.0, help="in 1/ps")
    parser.add_argument("--temperature", type=float, default=300.0, help="in K")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu", type=int, help="CPU to run on [the last one allowed]")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds per measurement")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    parser.add_argument(
        "--extra", nargs=argparse.REMAINDER, default=[], help="further arguments of scorefield"
    )
    arguments = parser.parse_args(arguments)
    if min([arguments.steps, arguments.min_steps, arguments.repeats, *arguments.replicas]) < 1:
        parser.error("--steps, --min-steps, --repeats and --replicas must be at least 1")
    return arguments


def check(arguments):
    """Complain about everything that is missing before measuring anything."""
    missing = []
    if arguments.peers is None:
        missing.append("no OpenMM environment: set SCOREFIELD_PEERS or give --peers")
    elif not (arguments.peers / "bin" / "python").exists():
        missing.append(f"{arguments.peers} is not a virtual environment (no bin/python in it)")
    if not os.access(arguments.binary, os.X_OK) or arguments.binary.is_dir():
        missing.append(
            f"{arguments.binary} is not an executable: run `cargo build --release` or give --binary"
        )
    missing += [f"{path} does not exist" for path in (arguments.pdb, arguments.xml) if not path.exists()]
    if not hasattr(os, "sched_setaffinity"):
        missing.append("this system cannot pin a process to a CPU")
    if missing:
        raise BenchmarkError("\n".join(missing))


def pin(cpu):
    """Restrict this process, and what it starts, to one CPU."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed) if cpu is None else cpu
    if cpu not in allowed:
        raise BenchmarkError(f"CPU {cpu} is not among the allowed ones: {sorted(allowed)}")
    os.sched_setaffinity(0, {cpu})
    for variable in ("OPENMM_CPU_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = "1"
    return cpu


def execute(command, timeout):
    """Standard output of a command; its last error lines if it fails."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"no end after {timeout:g} s: {' '.join(command)}") from None
    except OSError as error:
        raise BenchmarkError(f"{command[0]}: {error}") from None
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise BenchmarkError(f"exit status {done.returncode} of: {' '.join(command)}\n{tail}")
    return done.stdout


def run_openmm(arguments, name, cpu):
    command = [arguments.peers / "bin" / "python", HERE / "openmm_peer.py", "--json"]
    command += ["--pdb", arguments.pdb, "--xml", arguments.xml, "--platform", name]
    command += ["--threads", 1, "--repeats", 1, "--cpu", cpu, "--steps", arguments.steps]
    command += ["--dt-fs", arguments.dt_fs, "--friction", arguments.friction]
    command += ["--temperature", arguments.temperature, "--integrator", "middle"]
    return json.loads(execute(command, arguments.timeout))


def run_scorefield(arguments, dtype, replicas):
    steps = max(arguments.steps // replicas, arguments.min_steps)
    with tempfile.TemporaryDirectory(prefix="scorefield-peers-") as folder:
        summary_file = Path(folder) / "summary.json"
        command = [arguments.binary, "simulate", arguments.pdb, "--model", f"mm:{arguments.xml}"]
        command += ["--replicas", replicas, "--steps", steps, "--dt", f"{arguments.dt_fs:g} fs"]
        command += ["--friction", f"{arguments.friction:g} /ps"]
        command += ["--temperature", f"{arguments.temperature:g} K"]
        command += ["--dtype", dtype, "--threads", 1, "--out", Path(folder) / "out"]
        command += ["--summary", summary_file, "--quiet", *arguments.extra]
        execute(command, arguments.timeout)
        try:
            summary = json.loads(summary_file.read_text())
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"scorefield left no readable summary: {error}") from None
    # A rate of something other than what was asked for must not enter a table.
    absent = [k for k in ("steps_per_second", "dtype", "threads", "isa") if k not in summary]
    if absent:
        raise BenchmarkError(f"the summary of scorefield lacks {', '.join(absent)}")
    if summary["dtype"] != dtype or summary["threads"] != 1:
        raise BenchmarkError(
            f"asked scorefield for {dtype} on 1 thread, "
            f"got {summary['dtype']} on {summary['threads']}"
        )
    return {"steps": steps, **summary}


def measure(arguments, cpu):
    """All repeats of all contenders, as a list of rows in order of time."""
    contenders = [(f"OpenMM {name}", "openmm", (name, cpu)) for name in arguments.platforms]
    contenders += [
        (f"scorefield {dtype} R={replicas}", "scorefield", (dtype, replicas))
        for dtype in arguments.dtype
        for replicas in arguments.replicas
    ]
    rows = []
    for repeat in range(arguments.repeats):
        for name, program, options in contenders if repeat % 2 == 0 else contenders[::-1]:
            load = os.getloadavg()
            run = run_openmm if program == "openmm" else run_scorefield
            result = run(arguments, *options)
            rate = result["steps_per_second"]
            rows.append(
                {
                    "repeat": repeat,
                    "contender": name,
                    "program": program,
                    "steps_per_second": rate,
                    "load_average": list(load),
                    "result": result,
                }
            )
            print(f"[{repeat + 1}/{arguments.repeats}] {name}: {rate:.0f} steps/s", file=sys.stderr)
    return [name for name, _, _ in contenders], rows


def summarise(names, rows):
    """Rate of each contender and its ratio to each OpenMM platform."""
    rates = {name: {} for name in names}
    for row in rows:
        rates[row["contender"]][row["repeat"]] = row["steps_per_second"]
    isa = {r["contender"]: r["result"].get("isa") for r in rows}
    table = []
    for name in names:
        entry = {"contender": name, "isa": isa[name], "steps_per_second": spread(rates[name].values())}
        entry["ratio"] = {
            peer: spread(rate / rates[peer][repeat] for repeat, rate in rates[name].items())
            for peer in names
            if peer.startswith("OpenMM")
        }
        table.append(entry)
    return table


def spread(values):
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def markdown(table, facts):
    """The table with what one needs to know to read it."""
    peers = list(table[0]["ratio"])
    text = [
        f"{facts['model']}, one core (CPU {facts['cpu']}), load average "
        f"{facts['load_average']['min']:.2f} to {facts['load_average']['max']:.2f}; "
        f"OpenMM {facts['openmm']}; {facts['particles']} particles, "
        f"{facts['dt_fs']:g} fs; median (min–max) of {facts['repeats']} interleaved repeats.",
        "",
        "| | ISA | steps/s | " + " | ".join(f"÷ {peer}" for peer in peers) + " |",
        "|---|---|---:|" + "---:|" * len(peers),
    ]
    for entry in table:
        rate = entry["steps_per_second"]
        cells = [entry["contender"], entry["isa"] or "—"]
        cells.append(f"{rate['median']:.0f} ({rate['min']:.0f}–{rate['max']:.0f})")
        for peer in peers:
            r = entry["ratio"][peer]
            same = peer == entry["contender"]
            cells.append("1" if same else f"{r['median']:.2f} ({r['min']:.2f}–{r['max']:.2f})")
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main():
    arguments = parse()
    try:
        check(arguments)
        cpu = pin(arguments.cpu)
        names, rows = measure(arguments, cpu)
    except BenchmarkError as error:
        sys.exit(f"run.py: {error}")
    openmm = next(row["result"] for row in rows if row["program"] == "openmm")
    facts = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": cpu_model(),
        "cpu": cpu,
        "repeats": arguments.repeats,
        "load_average": spread(row["load_average"][0] for row in rows),
        "openmm": openmm["version"],
        "particles": openmm["particles"],
        "dt_fs": arguments.dt_fs,
        "friction_per_ps": arguments.friction,
        "temperature_K": arguments.temperature,
        "pdb": arguments.pdb.name,
        "xml": arguments.xml.name,
    }
    table = summarise(names, rows)
    text = markdown(table, facts)
    print(text, end="")
    if arguments.markdown:
        arguments.markdown.write_text(text)
    if arguments.json:
        document = {"facts": facts, "table": table, "measurements": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

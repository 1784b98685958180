"""i-PI moves 13 argon atoms on the forces of drivers: run_ipi.py PROGRAM MODE BEADS BATCH DRIVERS.

Checks that i-PI ends well, that its conserved quantity is conserved, and that all drivers end with status 0, also when one
of two is killed on the way."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy

program, mode, beads, batch, drivers = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
STEPS = 150
SIGMA = 3.405
name = f"scorefield-{os.getpid()}"
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]

golden = (1 + 5**0.5) / 2
corner = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
shell = numpy.array(corner + [p[1:] + p[:1] for p in corner] + [p[2:] + p[:2] for p in corner]) / (1 + golden**2) ** 0.5
x = numpy.vstack([[(0, 0, 0)], shell]) * 1.09 * SIGMA
with open("start.xyz", "w") as f:
    f.write("13\n\n" + "".join("Ar %.10f %.10f %.10f\n" % tuple(r) for r in x))

address = "127.0.0.1" if mode == "inet" else name
with open("input.xml", "w") as f:
    f.write(f"""<simulation verbosity='low'>
  <output prefix='run'><properties stride='1' filename='out'> [ step, conserved, potential, kinetic_md ] </properties></output>
  <total_steps>{STEPS}</total_steps>
  <prng><seed>7</seed></prng>
  <ffsocket mode='{mode}' name='f' pbc='False'>
    <address>{address}</address> <port>{port}</port> <latency>1e-4</latency> <timeout>20</timeout> <batch_size>{batch}</batch_size>
  </ffsocket>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='xyz' units='angstrom'> start.xyz </file>
      <cell mode='abc' units='angstrom'> [ 60, 60, 60 ] </cell>
      <velocities mode='thermal' units='kelvin'> 10 </velocities>
    </initialize>
    <forces> <force forcefield='f'/> </forces>
    <ensemble> <temperature units='kelvin'> 10 </temperature> </ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nvt' splitting='baoab'>
        <timestep units='femtosecond'> 4 </timestep>
        <thermostat mode='langevin'> <tau units='femtosecond'> 100 </tau> </thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
""")

ipi = os.path.join(os.path.dirname(sys.executable), "i-pi")
where = ["--host", "127.0.0.1", "--port", str(port)] if mode == "inet" else ["--unix", name]
command = [program, "drive", "--quiet", "--model", f"lj:sigma={SIGMA} A,epsilon=0.0103 eV", "--structure", "start.xyz", *where]
if mode == "shm":
    command.append("--shm")


def lost():
    """True where i-PI's thread of sockets has died: i-PI 3.3.1 does not catch the reset of a connection that it is reading
    from, and waits for that thread for ever."""
    return "Traceback" in open("ipi.log").read()


def attempt():
    """Runs i-PI to its end; false where it lost its own thread to the death of a driver."""
    with open("ipi.log", "w") as log:
        server = subprocess.Popen([sys.executable, ipi, "input.xml"], stdout=log, stderr=subprocess.STDOUT)
    running = [subprocess.Popen(command) for _ in range(drivers)]
    try:
        if drivers > 1:
            # Once some steps are done, one driver dies without a word.
            while server.poll() is None and not (os.path.exists("run.out") and sum(1 for _ in open("run.out")) > 20):
                time.sleep(0.02)
            killed = running.pop()
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        end = time.monotonic() + 400
        while server.poll() is None:
            if drivers > 1 and lost():
                return False
            assert time.monotonic() < end, open("ipi.log").read()
            time.sleep(0.05)
        assert server.wait() == 0, open("ipi.log").read()
        assert [d.wait(20) for d in running] == [0] * len(running)
        return True
    finally:
        for process in [server, *running]:
            process.kill()
            process.wait()


for trial in range(10):
    if attempt():
        break
    print("i-PI lost its thread of sockets when the driver died; again")
    os.remove("run.out")
    for left in (f"/tmp/ipi_{name}", "RESTART", "EXIT"):
        if os.path.exists(left):
            os.remove(left)
else:
    raise SystemExit("i-PI lost its thread of sockets ten times")

rows = numpy.loadtxt("run.out")
assert len(rows) == STEPS + 1, len(rows)
assert numpy.isfinite(rows).all()
drift, kinetic = numpy.ptp(rows[:, 1]), rows[:, 3].mean()
assert drift < 0.05 * kinetic, (drift, kinetic)
for left in ("run.out", "input.xml", "start.xyz", "RESTART", "ipi.log"):
    if os.path.exists(left):
        os.remove(left)
shutil.rmtree("__pycache__", ignore_errors=True)
print("ok", mode, beads, batch, drivers, "conserved within", drift, "of", kinetic)

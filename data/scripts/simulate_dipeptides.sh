#!/bin/sh
# Frames of dipeptides for a transferable model: ten beads, N CA C O CB of both residues, at 310 K.
#
#     sh data/scripts/simulate_dipeptides.sh dipeptides/train beads/train '600 ps' [THREADS]
#     sh data/scripts/simulate_dipeptides.sh dipeptides/test  beads/test '1100 ps' [THREADS]
#
# For each XY.pdb and XY.xml of the first folder (made by make_dipeptides.py): replica exchange from 310 to 600 K, five
# temperatures, eight copies, hydrogens of 3 u and 2 fs; the second folder gets XY.pdb and XY.dcd, the frames of the eight copies
# at 310 K every 0.5 ps, without the first 100 ps, one frame of each copy after the other. What is there already is kept.
set -eu
from=$1 to=$2 time=$3 threads=${4:-1}
scorefield=${SCOREFIELD:-scorefield}
mkdir -p "$to"
for structure in "$from"/*.pdb; do
    name=$(basename "$structure" .pdb)
    [ -e "$to/$name.dcd" ] && continue
    run=$to/$name.run
    "$scorefield" exchange "$structure" --model "mm:$from/$name.xml" --temperatures '310 K..600 K' --count 5 --copies 8 \
        --exchange-every 100 --dt '2 fs' --hydrogen-mass '3 u' --integrator middle --friction '1 /ps' --time "$time" \
        --select 'name N CA C O CB' --trajectory-every 250 --log-every 5000 --dtype f32 --seed 1 --threads "$threads" \
        --out "$run" --overwrite --quiet >"$to/$name.txt"
    "$scorefield" convert "$structure" "$to/$name.pdb" --select 'name N CA C O CB' --quiet >/dev/null
    "$scorefield" convert "$run/trajectory-310K.dcd" "$to/$name.part.dcd" --topology "$to/$name.pdb" --frames 1600: --quiet \
        >/dev/null
    mv "$to/$name.part.dcd" "$to/$name.dcd"
    rm -r "$run"
    echo "$name"
done

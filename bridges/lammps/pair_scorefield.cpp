#include "pair_scorefield.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"

#include "scorefield.h"

#include <cstring>

using namespace LAMMPS_NS;

static const double NM = 10.0;    // Angstrom per nm

PairScorefield::PairScorefield(LAMMPS *lmp) : Pair(lmp), model(nullptr), energy_unit(0.0)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
}

PairScorefield::~PairScorefield()
{
  scorefield_close(model);
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairScorefield::settings(int narg, char **arg)
{
  if (narg != 1) error->all(FLERR, "pair_style scorefield takes one argument, the model, in quotes where it has spaces");
  if (scorefield_abi_version() != SCOREFIELD_ABI_VERSION)
    error->all(FLERR, "libscorefield_c is of another version than the plugin; build the plugin anew");
  if (strcmp(update->unit_style, "metal") == 0)
    energy_unit = 96.48533212331002;
  else if (strcmp(update->unit_style, "real") == 0)
    energy_unit = 4.184;
  else
    error->all(FLERR, "pair_style scorefield needs units metal or real");
  spec = arg[0];
  std::string json = "{\"model\": \"";
  for (char c : spec) {
    if (c == '"' || c == '\\') json += '\\';
    json += c;
  }
  json += "\"}";
  scorefield_close(model);
  model = scorefield_open(json.c_str());
  if (!model) error->all(FLERR, "pair_style scorefield: {}", scorefield_last_error());
  if (strstr(scorefield_capabilities(model), "\"system\":\"si\"") == nullptr)
    error->all(FLERR, "pair_style scorefield: {} has reduced units; give it units, for example lj:sigma=3.405 A,epsilon=0.0103 eV", spec);
  if (scorefield_local_range(model) <= 0.0)
    error->all(FLERR,
               "pair_style scorefield shares space out over processes, which {} does not allow: {}. Whole structures on one process: "
               "fix external (scorefield.lammps of the Python package)",
               spec, scorefield_last_error());
}

void PairScorefield::coeff(int narg, char **arg)
{
  const int n = atom->ntypes;
  if (narg != n + 2 || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR, "pair_coeff of scorefield is: pair_coeff * * and an element for each of the {} atom types", n);
  if (!allocated) {
    allocated = 1;
    memory->create(setflag, n + 1, n + 1, "pair:setflag");
    memory->create(cutsq, n + 1, n + 1, "pair:cutsq");
  }
  element.assign(n + 1, 0);
  for (int i = 1; i <= n; i++) {
    element[i] = scorefield_element(arg[i + 1]);
    if (element[i] == 0) error->all(FLERR, "pair_coeff: {} is no element", arg[i + 1]);
    for (int j = i; j <= n; j++) setflag[i][j] = 1;
  }
}

void PairScorefield::init_style()
{
  if (force->newton_pair == 0) error->all(FLERR, "pair_style scorefield needs newton on: it has forces on ghost atoms");
  if (atom->molecular != Atom::ATOMIC)
    for (int i = 1; i < 4; i++)
      if (force->special_lj[i] == 0.0)
        error->all(FLERR, "pair_style scorefield needs all neighbors: special_bonds must not be 0 (use 1.0, or atoms without bonds)");
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairScorefield::init_one(int, int)
{
  return NM * scorefield_local_range(model);
}

void PairScorefield::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  if (vflag_atom) error->all(FLERR, "pair_style scorefield has no per-atom stress");

  const int owned = atom->nlocal, all = atom->nlocal + atom->nghost;
  x.resize(3 * all);
  f.resize(3 * all);
  types.resize(all);
  for (int i = 0; i < all; i++) {
    for (int a = 0; a < 3; a++) x[3 * i + a] = atom->x[i][a] / NM;
    types[i] = element[atom->type[i]];
  }
  counts.assign(owned, 0);
  lists.assign(owned, nullptr);
  for (int k = 0; k < list->inum; k++) {
    const int i = list->ilist[k];
    counts[i] = list->numneigh[i];
    lists[i] = list->firstneigh[i];
  }
  if (eflag_atom) atom_energy.resize(owned);

  scorefield_domain domain = {};
  domain.size = sizeof(domain);
  domain.owned = owned;
  domain.atoms = all;
  domain.positions = x.data();
  domain.types = types.data();
  domain.neighbour_counts = counts.data();
  domain.neighbours = lists.data();
  domain.neighbour_mask = NEIGHMASK;
  scorefield_domain_results results = {};
  results.size = sizeof(results);
  results.forces = f.data();
  results.atom_energy = eflag_atom ? atom_energy.data() : nullptr;
  if (scorefield_evaluate_local(model, &domain, &results) != SCOREFIELD_OK)
    error->one(FLERR, "pair_style scorefield: {}", scorefield_last_error());

  const double force_unit = energy_unit * NM;
  for (int i = 0; i < all; i++)
    for (int a = 0; a < 3; a++) atom->f[i][a] += f[3 * i + a] / force_unit;
  if (eflag_global) eng_vdwl += results.energy / energy_unit;
  if (eflag_atom)
    for (int i = 0; i < owned; i++) eatom[i] += atom_energy[i] / energy_unit;
  if (vflag_global) {
    static const int ROW[6] = {0, 4, 8, 1, 2, 5};    // xx yy zz xy xz yz
    for (int k = 0; k < 6; k++) virial[k] += results.virial[ROW[k]] / energy_unit;
  }
}

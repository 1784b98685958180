/* pair_style scorefield: forces of any local force provider in LAMMPS.
 * This file and pair_scorefield.cpp are compiled against LAMMPS, whose licence (GPLv2) then covers the result. */
#ifndef LMP_PAIR_SCOREFIELD_H
#define LMP_PAIR_SCOREFIELD_H

#include "pair.h"

#include <cstdint>
#include <string>
#include <vector>

struct scorefield_model;

namespace LAMMPS_NS {

class PairScorefield : public Pair {
 public:
  PairScorefield(class LAMMPS *);
  ~PairScorefield() override;
  void compute(int, int) override;
  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;

 private:
  std::string spec;
  scorefield_model *model;
  double energy_unit;                  // kJ/mol per energy of LAMMPS
  std::vector<uint32_t> element;       // atomic number per atom type, from 1
  std::vector<double> x, f, atom_energy;
  std::vector<uint32_t> types;
  std::vector<int32_t> counts;
  std::vector<const int32_t *> lists;
};

}    // namespace LAMMPS_NS
#endif

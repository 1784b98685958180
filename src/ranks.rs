//! Several processes under one run (`mpirun -n 4 scorefield exchange … --mpi`): feature `mpi`.

use crate::error::Result;
use scorefield_integrators::ranks::{Messages, dismiss};
use std::sync::Arc;

/// The processes of this run. Where it goes, the others are told to end.
pub struct Ranks {
    messages: Arc<dyn Messages>,
    #[cfg(feature = "mpi")]
    _universe: mpi::environment::Universe,
}

impl Ranks {
    /// Joins the processes that `mpirun` started.
    ///
    /// # Errors
    /// Where this program was built without MPI, or MPI fails.
    pub fn join() -> Result<Ranks> {
        #[cfg(feature = "mpi")]
        return world::join();
        #[cfg(not(feature = "mpi"))]
        crate::error::usage("--mpi: this program was built without MPI; build it with `cargo build --release --features mpi`")
    }

    /// Carries messages between the processes.
    pub fn messages(&self) -> &Arc<dyn Messages> {
        &self.messages
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        if self.messages.rank() == 0 {
            // Whoever cannot be reached any more has ended already.
            let _ = dismiss(&*self.messages);
        }
    }
}

#[cfg(feature = "mpi")]
mod world {
    //! MPI's world as messages.

    use super::{Messages, Ranks};
    use crate::error::{Error, Result};
    use mpi::Threading;
    use mpi::topology::{Communicator, SimpleCommunicator};
    use mpi::traits::{Destination, Source};
    use scorefield_integrators as engine;
    use std::sync::{Arc, Mutex, PoisonError};

    /// The communicator of all processes. One thread uses it at a time, which is what `Threading::Serialized` asks for.
    struct World {
        rank: usize,
        ranks: usize,
        communicator: Mutex<Handle>,
    }

    struct Handle(SimpleCommunicator);

    // SAFETY: a communicator is a number or an address that MPI made; with `Threading::Serialized`, which `join` insists on, any
    // thread may use it as long as no two do at once, which the mutex sees to.
    unsafe impl Send for Handle {}

    impl World {
        fn with<T>(&self, peer: usize, work: impl FnOnce(&SimpleCommunicator, i32) -> T) -> engine::Result<T> {
            let peer = i32::try_from(peer).map_err(|e| engine::Error::Invalid(format!("process {peer}: {e}")))?;
            let handle = self.communicator.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(work(&handle.0, peer))
        }
    }

    impl Messages for World {
        fn rank(&self) -> usize {
            self.rank
        }

        fn ranks(&self) -> usize {
            self.ranks
        }

        // MPI itself ends all processes where a connection is lost.
        fn send(&self, to: usize, message: &[u8]) -> engine::Result<()> {
            self.with(to, |world, to| world.process_at_rank(to).send(message))
        }

        fn receive(&self, from: usize) -> engine::Result<Vec<u8>> {
            self.with(from, |world, from| world.process_at_rank(from).receive_vec().0)
        }
    }

    pub(super) fn join() -> Result<Ranks> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::Run("MPI was started twice in this process".into()));
        };
        if threading < Threading::Serialized {
            return Err(Error::Run(format!(
                "this MPI serves the thread that started it only ({threading:?}); --mpi needs one built with MPI_THREAD_SERIALIZED"
            )));
        }
        let world = universe.world();
        let (rank, ranks) = (world.rank() as usize, world.size() as usize);
        let messages = Arc::new(World { rank, ranks, communicator: Mutex::new(Handle(world)) });
        Ok(Ranks { messages, _universe: universe })
    }
}

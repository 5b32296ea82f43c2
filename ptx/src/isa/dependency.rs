//! Programmatic dependent launch: a kernel that starts before those in front of it have ended (sm_90).

use super::Builder;

impl Builder {
    /// Waits until the launches in front of this one have ended and all that they wrote is seen.
    ///
    /// A kernel with it is *programmatic* ([`KernelMeta::programmatic`](crate::KernelMeta)), and what it may do before is
    /// told there. Behind it loads of read-only data are ordinary ones: what those launches wrote is not read-only as long
    /// as this kernel runs, and `ptxas` may move such a load in front of the wait.
    pub fn wait_for_launches(&mut self) {
        self.require(7, 8);
        self.programmatic = true;
        self.emit("griddepcontrol.wait", vec![]);
    }

    /// When every block has come here or ended, the next launch may start, if it is of a programmatic kernel. It says nothing
    /// of what this one has written by then: the next one waits for its end.
    pub fn let_next_start(&mut self) {
        self.require(7, 8);
        self.emit("griddepcontrol.launch_dependents", vec![]);
    }
}

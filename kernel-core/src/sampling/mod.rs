//! Masked-diffusion decoding: [`Decoder`] draws a token for every masked position and decides which of them stay.
//!
//! A step is the model's forward pass, its LM head on the listed rows, and [`Decoder::step`]. Nothing returns to the host in
//! between: engines read the list of rows on the device, and may ask for the progress now and then. Requests of one batch
//! have their own settings, seeds and progress; what one gets does not depend on the others.

mod decoder;
mod diffusion;
mod draw;
mod kernel;
mod request;
mod rule;
mod template;

pub use decoder::{Decoder, Logits, Progress, Room, Shard, Trajectory};
pub use diffusion::DiffusionDecoder;
pub use draw::{Credit, Draw};
pub use kernel::SamplerKernel;
pub use ptx::kernels::sampling::{Confidence, MAX_BIASES, RequestState, RowStatistics, request_flags};
pub use request::{Ending, EndingTime, Refresh, Request};
pub use rule::{Order, Rule};
pub use template::{SlotLengths, Template};

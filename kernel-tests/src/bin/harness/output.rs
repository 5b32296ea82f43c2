//! Standard output.

use std::io::{ErrorKind, Write};

/// Writes a line. A reader that has seen enough (`| head`) is no failure; whatever else goes wrong ends the program.
pub(crate) fn line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n"))
        && error.kind() != ErrorKind::BrokenPipe
    {
        eprintln!("error: cannot write to stdout: {error}");
        std::process::exit(2);
    }
}

/// `line` with the arguments of `println!`.
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::output::line(&format!($($arguments)*))
    };
}
pub(crate) use say;

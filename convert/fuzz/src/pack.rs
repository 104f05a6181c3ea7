//! Packs files for the corpus: `pack FOLDER FILE...`.

use std::path::Path;

use lithos_convert_fuzz::Sparse;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap_or_default();
    for path in args {
        let bytes = std::fs::read(&path)?;
        let name = Path::new(&path).file_name().unwrap_or_default();
        std::fs::write(Path::new(&folder).join(name), Sparse::pack(&bytes))?;
    }
    Ok(())
}

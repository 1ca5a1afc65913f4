//! The images of disks: opened, locked and labelled one by one, top to bottom.

use casemate_spec::{Disk, DiskFormat, ImageLayer, Root, RootSource};

use crate::fds::{FdAccess, FdKind, names};
use crate::role::{DiskPlan, LayerPlan};
use crate::step::{Action, ImageClass, LabelChoice, Layer, Role};
use crate::steps::Maker;

impl Maker<'_> {
    pub(crate) fn root(&mut self, root: &Root) {
        let path = match &root.source {
            RootSource::Dir(path) => format!("(the image of directory {path})"),
            RootSource::Tar(path) => format!("(the image of archive {path})"),
            RootSource::Image { path, .. } => path.to_string(),
        };
        self.image(names::disk("root"), path, !root.writable, false, self.default_choice());
        self.layers("root", root_image(root).1, self.default_choice());
    }

    pub(crate) fn disk(&mut self, disk: &Disk, choice: LabelChoice) {
        let Disk { id, path, read_only, shared, backing, .. } = disk;
        // A label of the disk's own is the top's; that labels are left alone goes for the whole chain.
        let below = match &choice {
            LabelChoice::Given { .. } => self.default_choice(),
            other => other.clone(),
        };
        self.image(names::disk(id.as_str()), path.to_string(), *read_only, *shared, choice);
        self.layers(id.as_str(), backing, below);
    }

    fn image(&mut self, fd: String, path: String, read_only: bool, shared: bool, choice: LabelChoice) {
        let access = if read_only { FdAccess::ReadOnly } else { FdAccess::ReadWrite };
        self.open(
            fd.clone(),
            path,
            FdKind::Image,
            access,
            "the format is named by the user, never guessed from content",
        );
        let exclusive = !read_only && !shared;
        self.lock(&fd, exclusive, "two writers destroy a file system");
        let class = match (read_only, shared) {
            (true, _) => ImageClass::Content,
            (false, true) => ImageClass::Shared,
            (false, false) => ImageClass::Exclusive,
        };
        self.relabel(fd, class, choice);
    }

    fn layers(&mut self, id: &str, layers: &[ImageLayer], choice: LabelChoice) {
        for (above, layer) in layers.iter().enumerate() {
            let fd = names::layer(id, above + 1);
            let why = "declared, never a name found in an image: a guest could have written that name";
            self.open(fd.clone(), layer.path.to_string(), FdKind::Image, FdAccess::ReadOnly, why);
            self.lock(&fd, false, "many may read it; a VM that writes it would change what lies above");
            self.relabel(fd, ImageClass::Content, choice.clone());
        }
    }

    fn lock(&mut self, fd: &str, exclusive: bool, why: &str) {
        let what = format!("lock '{fd}' {}", if exclusive { "exclusively" } else { "shared" });
        self.step(Role::Jailer, Layer::None, Action::LockImage { fd: fd.into(), exclusive }, what, why);
    }
}

fn root_image(root: &Root) -> (DiskFormat, &[ImageLayer]) {
    match &root.source {
        RootSource::Image { format, backing, .. } => (*format, backing),
        // The client makes raw images of these.
        RootSource::Dir(_) | RootSource::Tar(_) => (DiskFormat::Raw, &[]),
    }
}

pub(crate) fn root_plan(root: &Root) -> DiskPlan {
    let (format, backing) = root_image(root);
    plan("root", !root.writable, format, backing)
}

pub(crate) fn disk_plan(disk: &Disk) -> DiskPlan {
    plan(disk.id.as_str(), disk.read_only, disk.format, &disk.backing)
}

fn plan(id: &str, read_only: bool, format: DiskFormat, backing: &[ImageLayer]) -> DiskPlan {
    let layer =
        |(above, layer): (usize, &ImageLayer)| LayerPlan { fd: names::layer(id, above + 1), format: layer.format };
    let backing = backing.iter().enumerate().map(layer).collect();
    DiskPlan { fd: names::disk(id), serial: id.into(), read_only, format, backing }
}

//! A molecule's networks and symmetry functions as parameters of `kernels/ani.cu`.

use super::model::Model;
use super::provider::FORCE;
use scorefield_integrators::device::{DeviceModel, Field};
use scorefield_integrators::units::KJ_PER_HARTREE;

/// Reals of shared memory per atom: one atom's surroundings, as in the kernel.
const SURROUNDINGS: usize = 12;

impl Model {
    /// The kernels' parameters for a molecule of these atomic numbers.
    pub(super) fn device_model(&self, types: &[u32]) -> DeviceModel {
        let elements = &self.parameters.elements;
        let known: Vec<usize> = types.iter().map(|&z| elements.iter().position(|e| e.number == z).unwrap_or(0)).collect();
        let mut present = known.clone();
        present.sort_unstable();
        present.dedup();
        let element: Vec<i32> = known.iter().filter_map(|e| present.iter().position(|p| p == e)).map(|p| p as i32).collect();
        let mut atoms: Vec<usize> = (0..types.len()).collect();
        atoms.sort_by_key(|&i| element[i]);
        let mut rows = vec![0; types.len()];
        atoms.iter().enumerate().for_each(|(row, &i)| rows[i] = row as i32);
        let first = (0..=present.len()).map(|e| element.iter().filter(|&&p| (p as usize) < e).count() as i32);

        let symmetry = &self.parameters.symmetry;
        let (angles, distances) = (&symmetry.angle_shifts, &symmetry.distance_shifts);
        let angular = 0..symmetry.angular();
        let features = symmetry.features(present.len());
        let networks = Networks::pack(self, &present);
        let spill = types.len() * (2 * features + networks.hidden);
        let mut fields = vec![
            Field::Ints(element.clone()),
            Field::Ints(rows),
            Field::Ints(atoms.iter().map(|&i| i as i32).collect()),
            Field::Ints(first.collect()),
            Field::Ints(networks.layers),
            Field::Reals(networks.weights),
            Field::Reals(symmetry.radial_shifts.clone()),
            Field::Reals(angular.clone().map(|q| angles[q % angles.len()].cos()).collect()),
            Field::Reals(angular.clone().map(|q| angles[q % angles.len()].sin()).collect()),
            Field::Reals(angular.map(|q| distances[q / angles.len()]).collect()),
            Field::Spill,
        ];
        let numbers = [spill, present.len(), self.members, symmetry.radial(), symmetry.angular(), features, networks.stride];
        fields.extend(numbers.map(|n| Field::Int(n as i32)));
        let reals = [symmetry.radial_cutoff, symmetry.angular_cutoff, symmetry.radial_eta, symmetry.angular_eta, symmetry.zeta];
        let units = [KJ_PER_HARTREE, FORCE].map(|unit| unit / self.members as f64);
        fields.extend(reals.into_iter().chain(units).map(Field::Real));
        let constant = known.iter().map(|&e| elements[e].self_energy).sum::<f64>() * KJ_PER_HARTREE;
        DeviceModel {
            source: include_str!("../../kernels/ani.cu"),
            fields,
            group: None,
            scratch: SURROUNDINGS * types.len(),
            spill,
            constant,
        }
    }
}

/// Weights in the kernel's order, and where they are.
struct Networks {
    layers: Vec<i32>,
    /// Integers of `layers` per element.
    stride: usize,
    weights: Vec<f64>,
    /// Most activations of one atom.
    hidden: usize,
}

impl Networks {
    /// Every weight is there twice, `[inputs, outputs]` and transposed, so that threads read neighbours in both directions.
    fn pack(model: &Model, present: &[usize]) -> Self {
        let columns = model.parameters.symmetry.columns(model.networks.len(), present);
        let mut weights = Vec::new();
        let mut heads = Vec::with_capacity(present.len());
        let mut most_hidden = 0;
        for &e in present {
            let Some((last, hidden)) = model.networks[e].split_last() else { continue };
            let begin = weights.len();
            let mut head = vec![hidden.len()];
            for member in 0..model.members {
                for (l, layer) in hidden.iter().enumerate() {
                    let (inputs, outputs) = (if l == 0 { columns.len() } else { layer.inputs }, layer.outputs);
                    let matrix = &layer.weight[member * outputs * layer.inputs..][..outputs * layer.inputs];
                    let weight = |o: usize, k: usize| f64::from(matrix[o * layer.inputs + if l == 0 { columns[k] } else { k }]);
                    let at = weights.len();
                    if member == 0 {
                        head.extend([inputs, outputs, at, at + inputs * outputs, at + 2 * inputs * outputs]);
                    }
                    weights.extend((0..inputs).flat_map(|k| (0..outputs).map(move |o| (o, k))).map(|(o, k)| weight(o, k)));
                    weights.extend((0..outputs).flat_map(|o| (0..inputs).map(move |k| (o, k))).map(|(o, k)| weight(o, k)));
                    weights.extend(layer.bias[member * outputs..][..outputs].iter().map(|&b| f64::from(b)));
                }
                if member == 0 {
                    head.extend([last.inputs, weights.len(), weights.len() + last.inputs]);
                }
                weights.extend(last.weight[member * last.inputs..][..last.inputs].iter().map(|&w| f64::from(w)));
                weights.push(last.bias[member].into());
                if member == 0 {
                    head.push(weights.len() - begin);
                }
            }
            most_hidden = most_hidden.max(hidden.iter().map(|l| l.outputs).sum());
            heads.push(head);
        }
        let stride = heads.iter().map(Vec::len).max().unwrap_or(0);
        let mut layers = Vec::with_capacity(stride * heads.len());
        for mut head in heads {
            head.resize(stride, 0);
            layers.extend(head.into_iter().map(|k| k as i32));
        }
        Networks { layers, stride, weights, hidden: most_hidden }
    }
}
